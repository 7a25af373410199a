"""What a decision does to each module of the host: prepared for all first, then done."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from attn_surgery.planning import Cut, Decision
from attn_surgery.rewriting import (
    Alteration,
    Insertion,
    Replaced,
    Rewritten,
    Wrapping,
    alteration_of,
    as_host,
    change_class,
    class_beneath,
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
        attention = edit.attentions[cut.name] = _built(cut, init)
        asked = (decision.plan.position, decision.plan.existing, init)
        remember(attention, Origin(step, cut.site, cut.chosen.assignment, *asked))
        if cut.insertion is not None:
            edit.insertions.append(cut.insertion)
        elif cut.wrapping is not None:
            edit.wrappings.append(cut.wrapping)
        elif cut.site.method == "swap":
            stand_for(attention, replaced_in_slot(cut.holder, cut.name))
        else:
            (edit.attached_before if cut.is_before else edit.attached).append(cut.name)
    for edit in found.values():
        _prepare(edit, decision.rewritten.get(edit.module))
    return list(found.values())


def _built(cut: Cut, init: str) -> nn.Module:
    like = _like_its_maps(cut)
    # the CPU's draws are the same for every host, whatever the default device is
    place = like.device if like.is_meta else torch.device("cpu")
    with place, nullcontext():  # an interrupt at the end would pass by the last of them
        attention = cut.chosen.build(cut.site, init)
    return attention.to(device=like.device, dtype=like.dtype).train(cut.block.training)


def _like_its_maps(cut: Cut) -> torch.Tensor:
    """Return a tensor of the device and the dtype that the maps at a place have.

    They are those of a convolution: norms often are of another dtype than what they are given.
    """
    convolutions = [each for each in cut.block.modules() if isinstance(each, _ConvNd)]
    tensors = (
        *(own for each in reversed(convolutions) for own in each.parameters()),
        *(*cut.holder.parameters(), *cut.block.parameters(), *cut.block.buffers()),
    )
    return next((each for each in tensors if each.is_floating_point()), torch.empty(0))


def _prepare(edit: Edit, rewritten: Rewritten | None) -> None:
    """Make the new class of the module, or, where that is what it runs, its new graph."""
    module, insertions = edit.module, tuple(edit.insertions)
    if is_graph_module(module):
        edit.graph, insertions = graph_with_attention(module, edit.insertions), ()
    done = alteration_of(module) or Alteration(class_beneath(type(module)))
    done = replace(
        done,
        insertions=(*done.insertions, *insertions),
        wrappings=(*done.wrappings, *edit.wrappings),
        attached=(*done.attached, *edit.attached),
        attached_before=(*done.attached_before, *edit.attached_before),
    )
    methods: dict[str, Any] = {}
    if rewritten is not None:
        methods = rewritten.methods
        _note_dropped(edit, rewritten.dropped)
        watches = rewritten.watches_children
        done = replace(done, watched=rewritten.watched, watches_children=watches)
    if done.wrappings:
        with as_host(module):
            methods = wrapped_methods(module, done.wrappings)
        done = replace(done, watched=frozenset(methods))
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
