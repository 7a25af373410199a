"""Why an addition closes no residual block."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from attn_surgery.dataflow import (
    LAST,
    MAPS,
    Flow,
    Kind,
    Shape,
    argument,
    function_name,
    slices_channels,
)
from attn_surgery.finding.convolutions import is_mixing, is_spatial
from attn_surgery.finding.shortcuts import Shortcut, takes_part

UNKNOWN_LAYOUT = "the layout of the sum is unknown"
UNKNOWN_NUMBERS = "the number of channels or of spatial dims is unknown"


def refusal_of(flow: Flow, shortcut: Shortcut, branch: fx.Node, end: fx.Node, shape: Shape) -> str:
    """Return why the addition closes no residual block, or ""."""
    steps = list(flow.between(shortcut.fork, branch))
    if shortcut.is_part:
        whole = flow.leads_past(shortcut.fork, branch, lambda step: takes_part(flow, step))
        if whole:
            return "the shortcut keeps only a part of what the branch takes"
        return "the operands are different parts of one tensor"
    if shape.channels == 1 and (flow.shape(shortcut.steps[0]).channels or 1) > 1:
        return "the branch ends in one channel, which the addition spreads over all"
    if shape.layout == LAST:
        return "adds tokens or channels-last maps, not (N, C, *spatial)"
    if _is_partial(flow, end):
        return "adds to a part of the branch's channels only"
    if _interpolates(flow, shortcut.fork, branch):
        return "interpolates between x and f(x): no residual sum"
    if not _is_nonlinear(flow, shortcut.fork, steps):
        return "the branch is linear: no residual function"
    if shortcut.convolutions > 1:
        return f"the shortcut has {shortcut.convolutions} convolutions: a second branch"
    return (
        _convolution_refusal(flow, shortcut.fork, branch, steps)
        or _resolution_refusal(flow, shortcut, branch)
        or _shape_refusal(shape)
    )


def _is_partial(flow: Flow, end: fx.Node) -> bool:
    """Tell whether the branch ends in some channels of a tensor whose others go elsewhere."""
    if flow.kind(end) is not Kind.SLICE or not slices_channels(end):
        return False
    (source,) = flow.inputs[end]
    return len(flow.value_users[source]) > 1


def _resolution_refusal(flow: Flow, shortcut: Shortcut, branch: fx.Node) -> str:
    if shortcut.upsamples or flow.leads_past(
        shortcut.fork, branch, lambda step: flow.kind(step) is Kind.UPSAMPLE
    ):
        return ""
    steps = list(flow.between(shortcut.fork, branch))
    last = max(i for i, step in enumerate(steps) if flow.kind(step) is Kind.UPSAMPLE)
    if any(_goes_down(flow, step) for step in steps[last:]):
        return ""
    return "merges resolutions: the branch goes down and up again"


def _goes_down(flow: Flow, step: fx.Node) -> bool:
    """Tell whether a step returns a smaller map than it is given."""
    if flow.kind(step) is Kind.REARRANGE:
        module = flow.trace.called_module(step)
        return isinstance(module, nn.PixelUnshuffle) or function_name(step) == "pixel_unshuffle"
    if flow.kind(step) not in (Kind.POOL, Kind.CONV, Kind.FILTER):
        return False
    module = flow.trace.called_module(step)
    if module is not None:
        stride: Any = getattr(module, "stride", 1)
    else:
        of_pool = flow.kind(step) is Kind.POOL
        stride = argument(step, 2 if of_pool else 3, "stride")
        stride = argument(step, 1, "kernel_size") if of_pool and stride is None else stride
    steps = stride if isinstance(stride, (tuple, list)) else (stride,)
    return any(isinstance(each, int) and each > 1 for each in steps)


def _interpolates(flow: Flow, fork: fx.Node, branch: fx.Node) -> bool:
    """Tell whether the branch is ``z (f(x) - x)``, as in a gated recurrent unit, z computed."""
    factors = _factors(flow, branch)
    return len(factors) > 1 and any(_subtracts(flow, each, fork) for each in factors)


def _subtracts(flow: Flow, node: fx.Node, fork: fx.Node) -> bool:
    return flow.kind(node) is Kind.SUB and any(
        flow.becomes(fork, each) for each in flow.inputs[node]
    )


def _is_nonlinear(flow: Flow, fork: fx.Node, steps: list[fx.Node]) -> bool:
    return any(
        flow.kind(step) in _NONLINEAR or _multiplies(flow, fork, step) or _takes_largest(flow, step)
        for step in steps
    )


def _multiplies(flow: Flow, fork: fx.Node, step: fx.Node) -> bool:
    """Tell whether a step multiplies or divides two values that both come from the fork."""
    return sum(flow.depends(each, fork) for each in _factors(flow, step)) > 1


def _factors(flow: Flow, step: fx.Node) -> list[fx.Node]:
    """Return the computed values that a step multiplies, or divides by each other."""
    if flow.kind(step) not in (Kind.MUL, Kind.DIV):
        return []
    given = (flow.now(each) for each in step.args if isinstance(each, fx.Node))
    return [each for each in given if each in flow.inputs[step]]


def _takes_largest(flow: Flow, step: fx.Node) -> bool:
    """Tell whether a step takes the largest of all: that of a window is a shortcut's, too."""
    is_reduced = flow.kind(step) is Kind.REDUCE and step.op != "call_module"
    return is_reduced and any(word in function_name(step) for word in ("max", "min", "median"))


def _shape_refusal(shape: Shape) -> str:
    if shape.layout != MAPS:
        return UNKNOWN_LAYOUT
    if shape.channels is None or shape.spatial_dims is None:
        return UNKNOWN_NUMBERS
    return ""


def _convolution_refusal(flow: Flow, fork: fx.Node, branch: fx.Node, steps: list[fx.Node]) -> str:
    """Return why F lacks the convolutions of a residual block, or ""."""
    convolutions = [step for step in steps if flow.operations[step].convolution is not None]
    mixing = [step for step in steps if is_mixing(flow, step)]
    if mixing:
        is_activated = any(flow.kind(step) is Kind.ACTIVATION for step in steps)
        is_convolved = not flow.leads_past(fork, branch, lambda step: is_spatial(flow, step))
        is_bottleneck = len(convolutions) > 1 and not _mixes_raw(flow, fork, mixing)
        convolves = (is_activated and is_convolved) or is_bottleneck
        return "" if convolves else "self-attention: mixes positions, not all by convolving them"
    if any(is_spatial(flow, step) for step in steps):
        return ""
    if not convolutions:
        return "the branch has no convolution"
    around = [step for step in steps if flow.kind(step) in (Kind.POOL, Kind.FILTER, Kind.REARRANGE)]
    if len(convolutions) > 1 and any(_lies_between(flow, convolutions, step) for step in around):
        return ""
    return "1x1 convolutions only: a channel MLP"


def _mixes_raw(flow: Flow, fork: fx.Node, mixing: list[fx.Node]) -> bool:
    """Tell whether positions are mixed of what no activation has passed, unlike a bottleneck's."""
    return any(
        flow.leads_past(fork, step, lambda node: flow.kind(node) is Kind.ACTIVATION)
        for step in mixing
    )


def _lies_between(flow: Flow, convolutions: list[fx.Node], step: fx.Node) -> bool:
    return flow.depends(step, convolutions[0]) and any(
        conv is not step and flow.depends(conv, step) for conv in convolutions
    )


_NONLINEAR = {Kind.ACTIVATION, Kind.SIGMOID, Kind.SOFTMAX, Kind.MIX, Kind.MATH, Kind.OPAQUE}
