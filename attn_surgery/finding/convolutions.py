"""Which steps of a branch convolve over space, and which mix positions otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from attn_surgery.dataflow import Flow, Kind


def is_mixing(flow: Flow, step: fx.Node) -> bool:
    """Tell whether the step is a product of two computed matrices, as in self-attention."""
    is_product = flow.kind(step) is Kind.MIX and len(set(flow.inputs[step])) > 1
    return is_product and not _keeps_positions(step)


def _keeps_positions(step: fx.Node) -> bool:
    """Tell whether it is a sum over products of maps and numbers, ``bk,bkchw->bchw``."""
    equation = step.args[0] if step.args else None
    if not isinstance(equation, str) or "->" not in equation:
        return False
    given, _, made = equation.replace(" ", "").partition("->")
    *others, largest = sorted(given.split(","), key=len)
    is_map = len(largest) > max(map(len, others), default=0) and len(largest) >= 4
    return is_map and made[-2:] == largest[-2:]


def is_spatial(flow: Flow, step: fx.Node) -> bool:
    """Tell whether the step is, or holds, a learned convolution over space."""
    conv = flow.operations[step].convolution
    if conv is not None:
        return conv.is_spatial and flow.kind(step) is not Kind.FILTER
    return flow.kind(step) is Kind.OPAQUE and _holds_spatial_convolution(flow, step)


def _holds_spatial_convolution(flow: Flow, step: fx.Node) -> bool:
    module = flow.trace.called_module(step)
    if isinstance(module, torch.jit.ScriptModule):
        return any(max(each[2:], default=1) > 1 for each in _kernel_shapes(module))
    sizes = [getattr(each, "kernel_size", None) for each in module.modules()] if module else []
    return any(isinstance(size, tuple) and max(size) > 1 for size in sizes)


def _kernel_shapes(module: torch.jit.ScriptModule) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of what may be kernels, those that are frozen in the graph included."""
    yield from (tuple(each.shape) for each in module.parameters())
    graph: Any = module.inlined_graph  # its nodes do not keep it
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            yield tuple(node.t("value").shape)
