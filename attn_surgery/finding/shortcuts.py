"""The shortcut of a residual block: the way back from the addition to the tensor that both take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from attn_surgery.dataflow import Flow, Kind, slices_channels
from attn_surgery.tracing import Call, owner

_LINEAR_STEPS = {
    Kind.CONV,
    Kind.FILTER,
    Kind.LINEAR,
    Kind.NORM,
    Kind.POOL,
    Kind.PAD,
    Kind.VIEW,
    Kind.REARRANGE,
    Kind.SLICE,
    Kind.SPLIT,
    Kind.IDENTITY,
    Kind.DROPOUT,
    Kind.UPSAMPLE,
    Kind.CAT,
    Kind.ADD,
    Kind.SUB,
    Kind.MUL,
    Kind.DIV,
}


@dataclass(frozen=True)
class Shortcut:
    """The way back from the addition to the fork."""

    steps: tuple[fx.Node, ...]
    """From the operand S to the fork."""
    convolutions: int
    upsamples: bool
    is_part: bool
    """Whether S holds a part of the fork's channels only."""

    @property
    def fork(self) -> fx.Node:
        """The tensor that both operands are computed from."""
        return self.steps[-1]


def find_fork(
    flow: Flow, shortcut: fx.Node, branch: fx.Node, adder: Call | None = None
) -> Shortcut | None:
    """Walk back from S through linear steps to the nearest tensor that F is computed from, too.

    Args:
        flow: The trace.
        shortcut: The operand S.
        branch: The operand F.
        adder: The call in which other branches of that tensor may have been added to S before, as
            in ``x + f(x) + g(x)``.
    """
    steps = _way_back(flow, shortcut, branch, adder, set())
    if steps is None:
        return None
    passed = steps[:-1]
    return Shortcut(
        steps,
        _convolutions(flow, passed),
        upsamples=any(flow.kind(step) is Kind.UPSAMPLE for step in passed),
        is_part=any(takes_part(flow, step) for step in passed),
    )


def _way_back(
    flow: Flow, shortcut: fx.Node, branch: fx.Node, adder: Call | None, seen: set[fx.Node]
) -> tuple[fx.Node, ...] | None:
    steps = [shortcut]
    while True:
        node = steps[-1]
        if node is not branch and flow.depends(branch, node):
            return tuple(steps)
        kind, taken = flow.kind(node), flow.inputs[node]
        if kind not in _LINEAR_STEPS or node in seen:
            return None
        seen.add(node)
        if kind is Kind.ADD and len(taken) == 2 and owner(node) is adder:
            before = _beside_a_branch(flow, taken, branch, adder, seen)
            return before and (*steps, *before)
        if len(taken) != 1:
            return None
        steps += taken


def _beside_a_branch(
    flow: Flow, summands: Sequence[fx.Node], branch: fx.Node, adder: Call | None, seen: set[fx.Node]
) -> tuple[fx.Node, ...] | None:
    """Return the way back by one of two summands, if the other is a branch of its fork."""
    for one, other in (summands, reversed(summands)):
        steps = _way_back(flow, one, branch, adder, seen)
        if steps and not _convolutions(flow, steps[:-1]) and flow.depends(other, steps[-1]):
            return steps
    return None


def _convolutions(flow: Flow, steps: Sequence[fx.Node]) -> int:
    return sum(
        flow.kind(step) in (Kind.CONV, Kind.LINEAR)
        or (flow.kind(step) is Kind.UPSAMPLE and flow.operations[step].convolution is not None)
        for step in steps
    )


def takes_part(flow: Flow, node: fx.Node) -> bool:
    """Tell whether the node takes a part of the channels, or one of several parts."""
    if flow.kind(node) is Kind.SPLIT:
        return True
    if flow.kind(node) is not Kind.SLICE or not slices_channels(node):
        return False
    # of a pooled map and the indices of its maxima, one is no part of the other
    is_one_of_two = isinstance(node.args[1], int) if len(node.args) > 1 else False
    return not (is_one_of_two and flow.kind(flow.inputs[node][0]) is Kind.POOL)
