"""rewriting."""

from attn_surgery.rewriting.alteration import Alteration, alteration_of, as_host, set_class
from attn_surgery.rewriting.expressions import expression_of
from attn_surgery.rewriting.generated_forward import Original, Rewritten, original
from attn_surgery.rewriting.graph_module import (
    give_graph_back,
    graph_attentions,
    graph_with_attention,
    is_graph_module,
    set_graph,
)
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
    "expression_of",
    "free_name",
    "give_back",
    "give_graph_back",
    "graph_attentions",
    "graph_with_attention",
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
    "succession",
    "take_out",
    "value_name",
    "wrapped_methods",
]
