"""Which value of a residual block the attention receives, and who gets the result.

The positions are those of Hu et al. 2018 (arXiv:1709.01507, section 6.5, "integration strategy"),
and the one of Coordinate Attention and SE-3x3 in the middle of the branch:

============  ==================================================================================
``standard``  the end of the branch F, before the addition
``pre``       what enters F; the shortcut keeps the value as it was
``post``      the sum, after the activation that follows it in the block
``identity``  the end of the shortcut S, before the addition
``mid``       after the last spatial convolution of F that another transform follows (the last of
              all where none does), and its norm and activation
============  ==================================================================================

For placements that are none of these (BAM between stages, Coordinate Attention in MobileNetV2's
blocks without a shortcut), ``output`` is the output of whatever module the user names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from attn_surgery.dataflow import MAPS, Flow, Kind, Shape
from attn_surgery.finding.aliasing import CHANGED, changes_before_use, is_changed_by
from attn_surgery.finding.convolutions import is_spatial
from attn_surgery.finding.residual_blocks import TRANSFORMS, Residual, block_around
from attn_surgery.tracing import Call, index, owner

_ELEMENTWISE = {
    Kind.NORM,
    Kind.ACTIVATION,
    Kind.SIGMOID,
    Kind.MATH,
    Kind.MUL,
    Kind.DIV,
    Kind.ADD,
    Kind.SUB,
    Kind.IDENTITY,
}


@dataclass(frozen=True)
class Target:
    """The value that the attention receives."""

    block: Call
    value: fx.Node
    shape: Shape
    into: tuple[fx.Node, ...] = ()
    """The only nodes that get the result; () for all that take the value."""
    is_read_late: bool = False
    """Whether its memory is changed in place between where it is made and where it is taken."""
    is_channels_last: bool = False
    refusal: str = ""
    """Why the block has no such place, or none that can be cut."""


def target(flow: Flow, residual: Residual, position: str) -> Target:
    """Return what the attention receives in ``position``; that of a refused residual is refused."""
    standard = _standard(flow, residual)
    if residual.refusal:
        return replace(standard, refusal=residual.refusal)
    found = _TARGETS[position](flow, residual)
    if isinstance(found, str):
        return replace(standard, refusal=f"no place for {position!r}: {found}")
    if not found.shape.is_map:
        return replace(standard, refusal=f"no place for {position!r}: its shape is unknown")
    found = _read_when_taken(flow, found)
    if isinstance(found, str):
        return replace(standard, refusal=f"no place for {position!r}: {found}")
    return found


def _read_when_taken(flow: Flow, goal: Target) -> Target | str:
    """Let attention read the value where it is taken, if its memory is changed until then."""
    changes = changes_before_use(flow, goal.value)
    if not changes:
        return goal
    takers = goal.into or tuple(goal.value.users)
    are_inside = all(goal.block in owner(taker).lineage() for taker in takers)
    if not are_inside or max(map(index, changes)) > min(map(index, takers)):
        return CHANGED
    return replace(goal, into=takers, is_read_late=True)


def _standard(flow: Flow, residual: Residual) -> Target:
    block = block_around(residual.end, residual.addition)
    last = residual.is_channels_last
    return Target(block, residual.end, residual.shape, is_channels_last=last)


def _pre(flow: Flow, residual: Residual) -> Target | str:
    fork, block = residual.fork, block_around(residual.end, residual.addition)
    users = flow.value_users[fork]
    entering = [user for user in users if flow.depends(residual.branch, user)]
    if any(index(user) < block.start for user in entering):
        return "the branch begins outside of the block"
    others = {_child_around(user, block) for user in users if user not in entering}
    if others & {_child_around(user, block) for user in entering} - {None}:
        return "branch and shortcut enter one child together"
    shape = flow.shape(fork)
    shape = Shape(
        shape.layout or MAPS, shape.channels, shape.spatial_dims or residual.shape.spatial_dims
    )
    return _for_some(flow, block, fork, entering, shape)


def _identity(flow: Flow, residual: Residual) -> Target | str:
    block = block_around(residual.end, residual.addition)
    return _for_some(flow, block, residual.shortcut, [residual.taker], residual.shape)


def _post(flow: Flow, residual: Residual) -> Target | str:
    value, block = residual.addition, block_around(residual.end, residual.addition)
    around = list(owner(value).lineage())
    inside, passed = around[: around.index(block) + 1], []
    while len(users := flow.value_users[value]) == 1:
        (user,) = users
        is_inside = owner(user) in inside or owner(user).parent in inside
        if flow.kind(user) not in (Kind.ACTIVATION, Kind.IDENTITY) or not is_inside:
            break
        passed.append(user)
        value = user
    active = [node for node in passed if flow.kind(node) is Kind.ACTIVATION]
    return Target(block, active[-1] if active else residual.addition, residual.shape)


def _mid(flow: Flow, residual: Residual) -> Target | str:
    passed = _passed_by_all(flow, residual)
    transforms = [index(step) for step in passed if flow.kind(step) in TRANSFORMS]
    joined = [
        next(each for each in passed if index(each) >= index(step))
        for step in flow.between(residual.fork, residual.branch)
        if is_spatial(flow, step)
    ]
    followed = [step for step in joined if index(step) < max(transforms, default=0)]
    if not joined:
        return "the branch has no spatial convolution"
    value = _after_norm_and_activation(flow, (followed or joined)[-1], passed, residual.end)
    return Target(block_around(value, residual.addition), value, flow.shape(value))


_TARGETS: dict[str, Callable[[Flow, Residual], Target | str]] = {
    "standard": _standard,
    "pre": _pre,
    "post": _post,
    "identity": _identity,
    "mid": _mid,
}

OUTPUT = "output"
"""The output of any module, in a residual block or not: no question of this module."""

POSITIONS = (*_TARGETS, OUTPUT)


def _for_some(
    flow: Flow, block: Call, value: fx.Node, takers: list[fx.Node], shape: Shape
) -> Target | str:
    """Return the target whose result goes to ``takers`` alone."""
    others = [user for user in value.users if user not in takers]
    if not others and index(value) >= block.start:
        return Target(block, value, shape)
    if is_changed_by(flow, value, takers):
        return "its value is changed in place and used afterwards"
    return Target(block, value, shape, tuple(takers))


def _child_around(node: fx.Node, block: Call) -> Call | None:
    """Return the call that the block's own forward makes around ``node``, if any."""
    return next((call for call in owner(node).lineage() if call.parent is block), None)


def _passed_by_all(flow: Flow, residual: Residual) -> list[fx.Node]:
    """Return the steps of F that every way through it passes, in order."""
    steps = list(flow.between(residual.fork, residual.branch))
    inside = set(steps)
    passed, reach = [], 0
    for step in (residual.fork, *steps):
        if reach <= index(step) and step is not residual.fork:
            passed.append(step)
        onward = [index(user) for user in flow.value_users[step] if user in inside]
        reach = max([reach, *onward])
    return passed


def _after_norm_and_activation(
    flow: Flow, conv: fx.Node, passed: list[fx.Node], end: fx.Node
) -> fx.Node:
    """Follow F from a convolution over one norm and one nonlinearity, to its end at most."""
    value, seen = conv, set()
    for step in passed[passed.index(conv) + 1 :]:
        kinds = {flow.kind(each) for each in flow.between(value, step)}
        done = kinds - {Kind.IDENTITY}
        if not kinds <= _ELEMENTWISE or done & seen or index(step) > index(end):
            break
        seen |= done
        if done:
            value = step
    return value
