"""How one site can be cut: by a new forward of the block, or around one of its children."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from attn_surgery.entry import has_entry
from attn_surgery.expressions import expression_of
from attn_surgery.fidelity import runs_its_children
from attn_surgery.finder import Finding
from attn_surgery.former_self import as_host, surgery_of
from attn_surgery.graph_module import is_graph_module
from attn_surgery.inserting import Insertion, UnfaithfulError, insert_alike, value_name
from attn_surgery.placing import ELSEWHERE, Step
from attn_surgery.preserve import likeness
from attn_surgery.rewrite import Original, Rewritten, original
from attn_surgery.sources import Expression, Wrapping

Owners = Counter[nn.Module | None]
"""How many modules hold each module as a child."""


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
    """

    name: str
    after: str
    holder: str = ""
    is_before: bool = False
    slot: str = ""
    reason: str = ""
    step: Step | None = None
    expression: Expression | None = None


def insertion(finding: Finding, name: str, after: Step | None = None) -> Insertion:
    """Return where the attention called ``name`` goes in the block's forward."""
    spot, dims = finding.spot, finding.form.spatial_dims or 0
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
    dims = finding.form.spatial_dims or 0
    return Wrapping(name, expression, dims if finding.is_channels_last else 0)


class Forwards:
    """The forwards that are rewritten; blocks that are built alike share one."""

    def __init__(self) -> None:
        self._originals: dict[object, Original | str] = {}
        """Or why it cannot be rewritten: the error itself would hold the frames, and the host."""
        self._rewritten: dict[object, Rewritten] = {}
        self._expressions: dict[object, Expression | str] = {}

    def original(self, block: nn.Module) -> Original:
        """Trace the forward of ``block``, or return the trace of a block like it.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if (done := surgery_of(block)) and done.wrappings:
            raise UnfaithfulError("its source was wrapped before")
        alike = likeness(block)
        if alike not in self._originals:
            try:
                with as_host(block):
                    self._originals[alike] = original(block)
            except UnfaithfulError as error:
                self._originals[alike] = str(error)
        known = self._originals[alike]
        if isinstance(known, str):
            raise UnfaithfulError(known)
        return known

    def rewritten(self, block: nn.Module, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Rewrite the forward of ``block``, or return what a block like it got.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        key = likeness(block), insertions
        if key not in self._rewritten:
            self._rewritten[key] = self.original(block).with_attention(insertions)
        return self._rewritten[key]

    def expression(self, block: nn.Module, finding: Finding) -> Expression:
        """Return the expression in the block's own source that the attention goes around.

        Raises:
            UnfaithfulError: There is none.
        """
        if is_graph_module(block):
            raise UnfaithfulError("it runs a graph")
        if (done := surgery_of(block)) and done.insertions:
            raise UnfaithfulError("its forward was rewritten before")
        key = likeness(block), finding.spot
        if key not in self._expressions:
            try:
                with as_host(block):
                    self._expressions[key] = expression_of(block, finding.spot)
            except UnfaithfulError as error:
                self._expressions[key] = str(error)
        known = self._expressions[key]
        if isinstance(known, str):
            raise UnfaithfulError(known)
        return known

    def value(self, block: nn.Module, insertion: Insertion) -> str:
        """Return the name of the value that the insertion would receive.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if is_graph_module(block):
            return value_name(block.graph, insertion)
        return self.rewritten(block, (*_done_in(block), insertion)).after[-1]

    def fitting(self, block: nn.Module, insertions: list[Insertion]) -> list[str]:
        """Return, for each insertion, why it does not go with those before it, or ""."""
        reasons, accepted = [], list(_done_in(block))
        graph = copy.deepcopy(block.graph) if is_graph_module(block) else None
        for each in insertions:
            try:
                if graph is not None:
                    insert_alike([graph], each)
                else:
                    self.rewritten(block, (*accepted, each))
            except UnfaithfulError as error:
                reasons.append(f"cannot be rewritten together with others in its block: {error}")
            else:
                reasons.append("")
                accepted.append(each)
        return reasons


def _done_in(block: nn.Module) -> tuple[Insertion, ...]:
    done = surgery_of(block)
    return done.insertions if done is not None else ()


def choose_method(finding: Finding, owners: Owners, forwards: Forwards) -> Method:
    """Decide how the site can be cut."""
    for step in (finding.spot.step, *finding.spot.alternatives):
        method = _method(finding, step, owners, forwards)
        if method.name == "rewrite":
            return method
    return _method(finding, finding.spot.step, owners, forwards)


def _method(finding: Finding, step: Step, owners: Owners, forwards: Forwards) -> Method:
    if finding.slot is not None:
        return _swap(finding, finding.slot, owners)
    block = finding.block
    try:
        if finding.replaces and is_graph_module(block):
            raise UnfaithfulError("its old attention is part of its own graph")
        if not finding.spot.is_direct:
            raise UnfaithfulError(f"{step.name!r} is inside a child")
        if finding.spot.is_part:
            raise UnfaithfulError(f"{step.name!r} writes on a part of it")
        name = forwards.value(block, insertion(finding, free_name(block), step))
    except UnfaithfulError as error:
        if finding.replaces:
            return Method("", step.name, reason=f"its attention cannot be replaced: {error}")
        obstacles = []
        for holder, is_before, obstacle in _attachments(finding, owners):
            if not obstacle:
                return Method("attach", step.name or "input", holder, is_before)
            obstacles.append(obstacle)
        try:
            expression = forwards.expression(block, finding)
        except UnfaithfulError as why:
            reason = f"cannot be rewritten ({error}) nor attached to ({obstacles[0]})"
            return Method("", step.name, reason=f"{reason} nor wrapped ({why})")
        return Method("wrap", step.name or "input", expression=expression)
    return Method("rewrite", step.name if step.kind == "child" else name, step=step)


def _swap(finding: Finding, slot: str, owners: Owners) -> Method:
    """Return how the module at ``slot`` is swapped for the attention."""
    after, (holder, _, name) = finding.spot.step.name or "input", slot.rpartition(".")
    if slot == ELSEWHERE:
        reason = "its attention is held outside the block"
    elif owners[finding.block.get_submodule(slot)] > 1:
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
    target = finding.block.get_submodule(path)
    if owners[target] > 1:
        return f"{path!r} is shared"
    if parametrize.is_parametrized(target):
        return f"{path!r} is parametrized"
    if isinstance(target, torch.jit.ScriptModule):
        return f"{path!r} is scripted"
    if isinstance(target, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and len(target):
        return f"{path!r} runs its own children"
    if has_entry(target) and runs_its_children(target):
        return f"{path!r} runs its own children"
    return ""


def free_name(holder: nn.Module, taken: Sequence[str] = ()) -> str:
    """Return the first of ``attn``, ``attn_1``, ... that ``holder`` does not have."""
    number = 0
    while True:
        name = f"attn_{number}" if number else "attn"
        if name not in taken and not _has(holder, name):
            return name
        number += 1


def _has(holder: nn.Module, name: str) -> bool:
    own = (vars(holder), holder._modules, holder._parameters, holder._buffers)
    return any(name in names for names in own) or hasattr(type(holder), name)
