"""The shortcut of a residual block: the way back from the addition to the tensor that both take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from attn_surgery.dataflow import Flow, Kind, slices_channels

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


def find_fork(flow: Flow, shortcut: fx.Node, branch: fx.Node) -> Shortcut | None:
    """Walk back from S through linear steps to the nearest tensor that F is computed from, too."""
    steps, convolutions, upsamples, is_part = [shortcut], 0, False, False
    while True:
        node = steps[-1]
        if node is not branch and flow.depends(branch, node):
            return Shortcut(tuple(steps), convolutions, upsamples, is_part)
        kind = flow.kind(node)
        if kind not in _LINEAR_STEPS or len(flow.inputs[node]) != 1:
            return None
        convolutions += kind in (Kind.CONV, Kind.LINEAR) or (
            kind is Kind.UPSAMPLE and flow.operations[node].convolution is not None
        )
        upsamples |= kind is Kind.UPSAMPLE
        is_part |= takes_part(flow, node)
        steps += flow.inputs[node]


def takes_part(flow: Flow, node: fx.Node) -> bool:
    """Tell whether the node takes a part of the channels, or one of several parts."""
    if flow.kind(node) is Kind.SPLIT:
        return True
    if flow.kind(node) is not Kind.SLICE or not slices_channels(node):
        return False
    # of a pooled map and the indices of its maxima, one is no part of the other
    is_one_of_two = isinstance(node.args[1], int) if len(node.args) > 1 else False
    return not (is_one_of_two and flow.kind(flow.inputs[node][0]) is Kind.POOL)
