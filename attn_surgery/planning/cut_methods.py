"""How one site can be cut: by a new forward of the block, or around one of its children."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from attn_surgery.finding import ELSEWHERE, Finding, Step
from attn_surgery.host import has_entry, runs_all_below, runs_its_children
from attn_surgery.planning.rewritten_forwards import Forwards
from attn_surgery.rewriting import (
    Expression,
    Insertion,
    UnfaithfulError,
    Wrapping,
    free_name,
    is_graph_module,
)

Owners = Mapping[nn.Module | None, Sequence[nn.Module]]
"""The modules that hold each module as a child, once for each name."""


@dataclass(frozen=True)
class Method:
    """How a site is cut.

    Attributes:
        name: ``rewrite``, ``attach``, ``wrap`` or ``swap``; "" where it cannot be cut.
        after: What the attention receives, as the block's own forward sees it.
        holder: The path, inside the block, of the module that gets the attention as a child.
        is_before: Whether what the holder is given passes through the attention, and not what it
            returns.
        slot: The name that the attention gets there, where it takes the place of another child.
        reason: Why the site cannot be cut.
        step: What makes the value, where the forward is rewritten.
        expression: What is wrapped in the block's own source.
        covers: What makes its value on other ways through the block: their places, too.
    """

    name: str
    after: str
    holder: str = ""
    is_before: bool = False
    slot: str = ""
    reason: str = ""
    step: Step | None = None
    expression: Expression | None = None
    covers: frozenset[Step] = frozenset()


def insertion(finding: Finding, name: str, after: Step | None = None) -> Insertion:
    """Return where the attention called ``name`` goes in the block's forward."""
    spot, dims = finding.spot, finding.shape.spatial_dims or 0
    return Insertion(
        after=after or spot.step,
        attention=name,
        into=spot.into,
        replaces=finding.replaces,
        in_place=spot.in_place,
        channels_last_dims=dims if finding.is_channels_last else 0,
    )


def wrapping(finding: Finding, name: str, expression: Expression) -> Wrapping:
    """Return how the attention called ``name`` goes around an expression."""
    dims = finding.shape.spatial_dims or 0
    return Wrapping(name, expression, dims if finding.is_channels_last else 0)


def choose_method(finding: Finding, owners: Owners, forwards: Forwards) -> Method:
    """Decide how the site can be cut."""
    if _is_complex(finding.block):
        return Method("", finding.spot.step.name, reason="its maps are complex, attention is real")
    for step in (finding.spot.step, *finding.spot.alternatives):
        method = _method(finding, step, owners, forwards)
        if method.name == "rewrite":
            return method
    return _method(finding, finding.spot.step, owners, forwards)


def _is_complex(block: nn.Module) -> bool:
    convolutions = [each for each in block.modules() if isinstance(each, _ConvNd)]
    return any(own.is_complex() for each in convolutions[-1:] for own in each.parameters())


def _method(finding: Finding, step: Step, owners: Owners, forwards: Forwards) -> Method:
    if finding.slot is not None:
        return _swap(finding, finding.slot, owners)
    block = finding.block
    is_by_others = bool(finding.doubles)
    if not finding.replaces and (is_by_others or forwards.has_other_methods(block)):
        # a new forward would leave out what others get by these
        for holder, is_before, obstacle in _attachments(finding, owners):
            if not obstacle and (is_by_others or forwards.is_run_without(block, finding, holder)):
                return Method("attach", step.name or "input", holder, is_before)
    try:
        if finding.replaces and is_graph_module(block):
            raise UnfaithfulError("its old attention is part of its own graph")
        if not finding.spot.is_direct:
            raise UnfaithfulError(f"{step.name!r} is inside a child")
        if finding.spot.is_part:
            raise UnfaithfulError(f"{step.name!r} writes on a part of it")
        name = forwards.try_one(block, insertion(finding, free_name(block), step))
    except UnfaithfulError as error:
        if finding.replaces:
            return Method("", step.name, reason=f"its attention cannot be replaced: {error}")
        obstacles = []
        for holder, is_before, obstacle in _attachments(finding, owners):
            if not obstacle:
                return Method("attach", step.name or "input", holder, is_before)
            obstacles.append(obstacle)
        try:
            expression, covers = forwards.expression(block, finding)
        except UnfaithfulError as why:
            reason = f"cannot be rewritten ({error}) nor attached to ({obstacles[0]})"
            return Method("", step.name, reason=f"{reason} nor wrapped ({why})")
        return Method("wrap", step.name or "input", expression=expression, covers=covers)
    return Method("rewrite", step.name if step.kind == "child" else name, step=step)


def _swap(finding: Finding, slot: str, owners: Owners) -> Method:
    """Return how the module at ``slot`` is swapped for the attention."""
    after, (holder, _, name) = finding.spot.step.name or "input", slot.rpartition(".")
    if slot == ELSEWHERE:
        reason = "its attention is held outside the block"
    elif len(owners.get(finding.block.get_submodule(slot), ())) > 1:
        reason = f"its attention {slot!r} is shared"
    else:
        return Method("swap", after, holder, slot=name)
    return Method("", after, reason=reason)


def _attachments(finding: Finding, owners: Owners) -> Iterator[tuple[str, bool, str]]:
    """Yield (module, whether before it, why that cannot be) for each way of attaching."""
    spot = finding.spot
    yield spot.source or "", False, _source_obstacle(finding, owners)
    if spot.is_result:
        yield "", False, _holder_obstacle(finding, "", owners)
    if spot.taker is not None:
        yield spot.taker, True, _holder_obstacle(finding, spot.taker, owners)


def _source_obstacle(finding: Finding, owners: Owners) -> str:
    """Return why the output of the child cannot be passed through an attention, or ""."""
    spot = finding.spot
    if spot.source is None:
        return f"{spot.step.name or 'the argument'!r} is no child"
    if spot.is_read_late:
        return f"what {spot.source!r} returns is changed in place before it is used"
    if spot.into:
        return f"{spot.source!r} returns to others, too"
    if not spot.is_used:
        return f"what {spot.source!r} returns is not used"
    if not spot.is_only_call:
        return f"{spot.source!r} is called more than once"
    return _holder_obstacle(finding, spot.source, owners)


def _holder_obstacle(finding: Finding, path: str, owners: Owners) -> str:
    """Return why an attention cannot be put around the module at ``path``, or ""."""
    if finding.is_channels_last:
        return f"{path!r} returns its channels last"
    if path == ELSEWHERE:
        return "the child is held outside the block"
    if path in finding.otherwise:
        return f"{path!r} does something else on another way through the forward"
    if path and runs_all_below(finding.block):
        return f"the modules below {type(finding.block).__name__} are all reached by its forward"
    target = finding.block.get_submodule(path)
    if _is_shared(target, finding.block, owners):
        return f"{path!r} is shared"
    if isinstance(target, torch.jit.ScriptModule):
        return f"{path!r} is scripted"
    if isinstance(target, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and len(target):
        return f"{path!r} runs its own children"
    if has_entry(target) and runs_its_children(target):
        return f"{path!r} runs its own children"
    return ""


def _is_shared(target: nn.Module, block: nn.Module, owners: Owners) -> bool:
    """Tell whether others than the block may call a module; how often the block does, it tells."""
    holders = owners.get(target, ())
    if target is block:
        return len(holders) > 1
    inside = set(block.modules())
    return any(each not in inside for each in holders)
