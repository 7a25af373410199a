"""What a decision does to each module of the host: prepared for all first, then done."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.planning import Cut, Decision, build_at
from attn_surgery.rewriting import (
    Alteration,
    Insertion,
    Replaced,
    UnfaithfulError,
    Wrapping,
    alteration_of,
    as_host,
    change_class,
    free_name,
    graph_with_attention,
    is_graph_module,
    operated_class,
    replaced_at,
    replaced_in_slot,
    set_graph,
    stand_for,
    take_out,
    wrapped_methods,
)
from attn_surgery.surgery.origin import Origin, remember


@dataclass
class Edit:
    """All that is done to one module."""

    module: nn.Module
    insertions: list[Insertion] = field(default_factory=list)
    wrappings: list[Wrapping] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    attached_before: list[str] = field(default_factory=list)
    attentions: dict[str, nn.Module] = field(default_factory=dict)
    operated: type[nn.Module] | None = None
    graph: fx.Graph | None = None
    replaced: Replaced | None = None
    """What the module loses, an old attention's children."""


def edits(decision: Decision, init: str, step: int) -> list[Edit]:
    """Build every attention and every new class; nothing of the host is touched."""
    found: dict[nn.Module, Edit] = {}
    for cut in decision.cuts:
        edit = found.setdefault(cut.holder, Edit(cut.holder))
        name = cut.method.slot or free_name(cut.holder, tuple(edit.attentions))
        edit.attentions[name] = _built(cut, init)
        asked = (decision.plan.position, decision.plan.existing, init)
        remember(edit.attentions[name], Origin(step, cut.site, cut.chosen.assignment, *asked))
        if cut.method.slot:
            stand_for(edit.attentions[name], replaced_in_slot(cut.holder, name))
        elif cut.method.name == "rewrite":
            edit.insertions.append(cut.insertion(name))
        elif cut.method.name == "wrap":
            edit.wrappings.append(cut.wrapping(name))
        else:
            (edit.attached_before if cut.method.is_before else edit.attached).append(name)
    for edit in found.values():
        _prepare(edit, decision)
    return list(found.values())


def _built(cut: Cut, init: str) -> nn.Module:
    block = cut.finding.block
    tensors = (*cut.holder.parameters(), *block.parameters(), *block.buffers())
    like = next((each for each in tensors if each.is_floating_point()), torch.empty(0))
    # elsewhere than on the meta device, the CPU's draws are the same for every host
    place = like.device if like.is_meta else nullcontext()
    with place, nullcontext():  # an interrupt at the end would pass by the last of them
        attention = build_at(cut, init)
    return attention.to(device=like.device, dtype=like.dtype).train(block.training)


def _prepare(edit: Edit, decision: Decision) -> None:
    """Make the new class of the module, or, where that is what it runs, its new graph."""
    module = edit.module
    done = alteration_of(module) or Alteration(type(module))
    insertions = (*done.insertions, *edit.insertions)
    methods: dict[str, Any] = {}
    if is_graph_module(module):
        edit.graph = graph_with_attention(module, edit.insertions)
        insertions = ()
    if insertions:
        try:
            forward = decision.forwards.rewritten(module, insertions)
        except UnfaithfulError as error:  # each insertion was tried alone
            raise SurgeryError(f"{done.base.__name__} cannot be rewritten: {error}") from error
        methods = forward.methods
        _note_dropped(edit, forward.dropped)
        done = replace(done, watched=forward.watched, watches_children=forward.watches_children)
    wrappings = (*done.wrappings, *edit.wrappings)
    if wrappings:
        with as_host(module):
            methods = wrapped_methods(module, wrappings)
        done = replace(done, watched=frozenset(methods))
    done = replace(
        done,
        insertions=insertions,
        wrappings=wrappings,
        attached=(*done.attached, *edit.attached),
        attached_before=(*done.attached_before, *edit.attached_before),
    )
    if done.attentions:
        edit.operated = operated_class(module, done, methods)


def _note_dropped(edit: Edit, dropped: tuple[str, ...]) -> None:
    """Let an attention keep the children of the old one that the new forward does not call."""
    held = [path for path in dropped if _holds(edit.module, path)]
    if held:
        edit.replaced = replaced_at(edit.module, held)
        keeper = next(each for each in edit.insertions if each.replaces)
        stand_for(edit.attentions[keeper.attention], edit.replaced)


def _holds(module: nn.Module, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return name in module.get_submodule(parent)._modules


def carry_out(edit: Edit) -> None:
    """Change the module."""
    module = edit.module
    for name, attention in edit.attentions.items():
        if name in module._modules:  # a slot: the order of the children stays
            module._modules[name] = attention
        else:
            nn.Module.add_module(module, name, attention)  # past what watches the children
    if edit.replaced is not None:
        take_out(module, edit.replaced)
    if edit.graph is not None and is_graph_module(module):
        set_graph(module, edit.graph, [each.attention for each in edit.insertions])
    if edit.operated is not None:
        change_class(module, edit.operated)
