"""Which steps of a branch convolve over space, and which mix positions otherwise."""

from __future__ import annotations

from torch import fx

from attn_surgery.dataflow import Flow, Kind


def is_mixing(flow: Flow, step: fx.Node) -> bool:
    """Tell whether the step is a product of two computed matrices, as in self-attention."""
    return flow.kind(step) is Kind.MIX and len(set(flow.inputs[step])) > 1


def is_spatial(flow: Flow, step: fx.Node) -> bool:
    """Tell whether the step is, or holds, a learned convolution over space."""
    conv = flow.operations[step].convolution
    if conv is not None:
        return conv.is_spatial and flow.kind(step) is not Kind.FILTER
    return flow.kind(step) is Kind.OPAQUE and _holds_spatial_convolution(flow, step)


def _holds_spatial_convolution(flow: Flow, step: fx.Node) -> bool:
    module = flow.trace.called_module(step)
    sizes = [getattr(each, "kernel_size", None) for each in module.modules()] if module else []
    return any(isinstance(size, tuple) and max(size) > 1 for size in sizes)
