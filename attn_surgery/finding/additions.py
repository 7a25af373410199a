"""Which steps of a trace add two tensors, however that is spelled, and which only look like it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from attn_surgery.dataflow import Flow, Kind, argument, function_name


@dataclass(frozen=True)
class Addition:
    """A step that adds two tensors."""

    node: fx.Node
    """What makes the sum."""
    operands: tuple[fx.Node, fx.Node]
    taker: fx.Node
    """What takes the operands: the same step, or the stack that it sums up."""
    refusal: str = ""
    """Why it is no sum."""


def additions(flow: Flow) -> Iterator[Addition]:
    """Yield the steps that add two tensors, once for any two of those that are stacked for it."""
    for node, inputs in flow.inputs.items():
        kind, taker = flow.kind(node), node
        if kind is Kind.REDUCE and len(inputs) == 1 and _sums_up(flow, node, inputs[0]):
            taker, inputs = inputs[0], flow.inputs[inputs[0]]
        elif kind not in _ADDING:
            continue
        for pair in itertools.combinations(inputs, 2):
            yield Addition(node, pair, taker, _ADDING.get(kind, ""))


_ADDING = {
    Kind.ADD: "",
    Kind.SUB: "subtracts: x - f(x) is no residual sum",
    Kind.LERP: "interpolates between x and f(x) by torch.lerp: no residual sum",
}


def _sums_up(flow: Flow, node: fx.Node, stack: fx.Node) -> bool:
    """Tell whether the node is the sum or the mean of tensors that were stacked for it."""
    if function_name(node) not in ("sum", "mean") or function_name(stack) != "stack":
        return False
    along = argument(stack, 1, "dim") or 0
    is_undone = flow.shapes[stack].stacked is not None and flow.shapes[node].stacked is None
    return is_undone or along == argument(node, 1, "dim")
