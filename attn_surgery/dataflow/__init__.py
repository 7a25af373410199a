"""dataflow."""

from attn_surgery.dataflow.flow import Flow
from attn_surgery.dataflow.node_kinds import Kind, argument, function_name, is_item_set
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
    "function_name",
    "is_item_set",
    "slices_channels",
]
