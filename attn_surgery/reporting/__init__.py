"""The report: what attention costs in a host, counted and measured on copies of it.

`report` makes rows (`Row`) and hands on a `Report`, which knows how it is shown: as a table, in
another format, as a picture. The catalogue does the same for the attentions alone.
"""

from attn_surgery.reporting.catalogue import catalogue, listing_table
from attn_surgery.reporting.counting import count_work
from attn_surgery.reporting.drawing import new_figure
from attn_surgery.reporting.formats import render
from attn_surgery.reporting.measuring import (
    accelerator,
    checked_device,
    command,
    device_name,
    waiting,
)
from attn_surgery.reporting.plan_drawing import check_drawing, draw_plan
from attn_surgery.reporting.plot import check_plot, plot
from attn_surgery.reporting.report import report
from attn_surgery.reporting.result import WIDTH, Report, check_columns
from attn_surgery.reporting.rows import Row

__all__ = [
    "WIDTH",
    "Report",
    "Row",
    "accelerator",
    "catalogue",
    "check_columns",
    "check_drawing",
    "check_plot",
    "checked_device",
    "command",
    "count_work",
    "device_name",
    "draw_plan",
    "listing_table",
    "new_figure",
    "plot",
    "render",
    "report",
    "waiting",
]
