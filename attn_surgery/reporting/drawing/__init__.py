"""How a plan is drawn: its blocks in forward order, laid out once, written as SVG, PNG or HTML.

A plan becomes `Block`s, these a `Picture` of a few kinds of shapes, and that a file. What a site
costs is given: nothing is counted here.
"""

from attn_surgery.reporting.drawing.blocks import Block, blocks_of
from attn_surgery.reporting.drawing.figures import imported, new_figure
from attn_surgery.reporting.drawing.layout import picture
from attn_surgery.reporting.drawing.numbers import COSTS, Costs
from attn_surgery.reporting.drawing.page import page
from attn_surgery.reporting.drawing.png import write_png
from attn_surgery.reporting.drawing.svg import svg

__all__ = [
    "COSTS",
    "Block",
    "Costs",
    "blocks_of",
    "imported",
    "new_figure",
    "page",
    "picture",
    "svg",
    "write_png",
]
