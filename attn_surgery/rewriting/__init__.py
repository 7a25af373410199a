"""How one module is changed, and changed back.

Its forward is generated anew from its trace, with attention in it (insertion, generated_forward,
train_eval_switch); or stays, with attention around it (attached_forward) or around one of its
expressions, compiled from the host's own source (expressions, read_values, syntax, wrapped_source).
The module stays the object that it was and gets a one-off class, which knows what was done
(alteration) and does it again after a copy (one_off_class), when what the forward reads is set
(watched_attributes) or its children are listed and changed (containers).
"""

from attn_surgery.rewriting.alteration import Alteration, alteration_of, as_host, set_class
from attn_surgery.rewriting.derived_classes import class_beneath
from attn_surgery.rewriting.expressions import expression_of
from attn_surgery.rewriting.generated_forward import Original, Rewritten, original
from attn_surgery.rewriting.graph_module import (
    give_graph_back,
    graph_attentions,
    graph_with_attention,
    is_graph_module,
    set_graph,
)
from attn_surgery.rewriting.held_attentions import held_attentions
from attn_surgery.rewriting.insertion import (
    Insertion,
    UnfaithfulError,
    free_name,
    insert_alike,
    value_name,
)
from attn_surgery.rewriting.one_off_class import change_class, give_back, operated_class
from attn_surgery.rewriting.replaced_modules import (
    Replaced,
    put_back,
    replaced_at,
    replaced_by,
    replaced_in_slot,
    slots,
    stand_for,
    state_put_back,
    succession,
    take_out,
)
from attn_surgery.rewriting.wrapped_source import Expression, Wrapping, wrapped_methods

__all__ = [
    "Alteration",
    "Expression",
    "Insertion",
    "Original",
    "Replaced",
    "Rewritten",
    "UnfaithfulError",
    "Wrapping",
    "alteration_of",
    "as_host",
    "change_class",
    "class_beneath",
    "expression_of",
    "free_name",
    "give_back",
    "give_graph_back",
    "graph_attentions",
    "graph_with_attention",
    "held_attentions",
    "insert_alike",
    "is_graph_module",
    "operated_class",
    "original",
    "put_back",
    "replaced_at",
    "replaced_by",
    "replaced_in_slot",
    "set_class",
    "set_graph",
    "slots",
    "stand_for",
    "state_put_back",
    "succession",
    "take_out",
    "value_name",
    "wrapped_methods",
]
