"""Which children of a module are attention that was put there."""

from __future__ import annotations

from torch import nn

from attn_surgery.rewriting.alteration import alteration_of
from attn_surgery.rewriting.graph_module import graph_attentions, is_graph_module
from attn_surgery.rewriting.replaced_modules import slots


def held_attentions(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the attentions that a module runs, or holds in a place of its own."""
    done = alteration_of(module)
    in_graph = graph_attentions(module) if is_graph_module(module) else ()
    return (*in_graph, *(done.attentions if done else ()), *slots(module))
