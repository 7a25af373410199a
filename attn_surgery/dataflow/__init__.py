"""What a trace means: which kind of operation each node is, and which shapes flow where.

`Flow` answers all questions that finding asks of a trace: what depends on what, what a value is by
now if it was changed in place, how many channels and spatial dims it has. Only what is certain is
said.
"""

from attn_surgery.dataflow.called_functions import argument, function_name
from attn_surgery.dataflow.flow import Flow
from attn_surgery.dataflow.following import followed, followed_every_way, followed_otherwise
from attn_surgery.dataflow.node_kinds import Kind, is_item_set
from attn_surgery.dataflow.shapes import LAST, MAPS, UNKNOWN, Shape
from attn_surgery.dataflow.view_shapes import slices_channels

__all__ = [
    "LAST",
    "MAPS",
    "UNKNOWN",
    "Flow",
    "Kind",
    "Shape",
    "argument",
    "followed",
    "followed_every_way",
    "followed_otherwise",
    "function_name",
    "is_item_set",
    "slices_channels",
]
