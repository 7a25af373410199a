"""The gates of channels on the sheet: a line a site, a dot a channel, the numbers beside."""

from __future__ import annotations

from typing import Any

import numpy

from attn_surgery.showing.colours import ABOVE, BELOW
from attn_surgery.showing.exhibits import Exhibits, SiteGates
from attn_surgery.showing.numbers import DAMPED, HIGH, LOW, RAISED, mean_gates
from attn_surgery.showing.sheet_layout import Canvas
from attn_surgery.showing.tables import site_table

MARGIN = 0.3
"""Inches around everything."""
LINE = 0.26
"""Inches for each site."""
_NAME, _DOTS, _GAP = 1.9, 4.4, 0.35
_COLUMNS = {"5 % to 95 %": 1.15, ">1.05": 0.5, "<0.95": 0.5, "<0.1": 0.45, "farthest from 1": 1.15}
_COLUMNS |= {"change (%)": 0.8, "between classes": 3.0}
"""Of `site_table`, and how wide each is, in inches."""


def channels_width(exhibits: Exhibits) -> float:
    """Return how wide a figure has to be, in inches."""
    heads, _ = site_table(exhibits)
    numbers = sum(width for name, width in _COLUMNS.items() if name in heads)
    return 2 * MARGIN + _NAME + _DOTS + _GAP + numbers


def draw_channels(canvas: Canvas, exhibits: Exhibits, left: float, top: float) -> None:
    """Draw all sites, below each other."""
    heading = "Channel gates: a dot is a channel, its mean gate over the images"
    canvas.text(left, top, heading, size=10, bold=True)
    first = top + 0.28
    _draw_numbers(canvas, exhibits, left + _NAME + _DOTS + _GAP, first)
    sites = exhibits.sites
    for i, site in enumerate(sites):
        told = f"{site.title}  ({site.spread.channels})"
        canvas.text(left, first + LINE * (i + 1) + 0.05, told, size=8.5)
    axes = canvas.axes(left + _NAME, first + LINE, _DOTS, LINE * len(sites))
    axes.set(xlim=(LOW - 0.02, HIGH + 0.02), ylim=(len(sites) - 0.5, -0.5), yticks=[])
    axes.axvspan(DAMPED, RAISED, color="0.92", zorder=0)
    axes.axvline(1, color="0.4", linewidth=0.8, zorder=1)
    for i, site in enumerate(sites):
        axes.axhline(i + 0.5, color="0.85", linewidth=0.6, zorder=0)
        _draw_dots(axes, site, i)
    ticks = {LOW: "≤0.5", 0.75: "0.75", DAMPED: "0.95", RAISED: "1.05", 1.25: "1.25", HIGH: "≥1.5"}
    axes.set_xticks(list(ticks), list(ticks.values()), size=8)


def _draw_dots(axes: Any, site: SiteGates, line: int) -> None:
    gates = mean_gates(site.channel)
    gates = gates[~numpy.isnan(gates)]
    heights = line + 0.36 * numpy.sin(2.4 * numpy.arange(gates.size))  # apart, and always alike
    shade = numpy.where(gates < DAMPED, 0, numpy.where(gates > RAISED, 2, 1))
    colours = numpy.array([BELOW, (70, 70, 70), ABOVE]) / 255
    for clipped, marker, size in ((gates < LOW, "<", 14), (gates > HIGH, ">", 14), (None, "o", 5)):
        kept = (gates >= LOW) & (gates <= HIGH) if clipped is None else clipped
        axes.scatter(
            gates[kept].clip(LOW, HIGH),
            heights[kept],
            s=size,
            marker=marker,
            c=colours[shade[kept]],
            alpha=0.6,
            linewidths=0,
        )


def _draw_numbers(canvas: Canvas, exhibits: Exhibits, left: float, top: float) -> None:
    heads, rows = site_table(exhibits)
    for name, width in _COLUMNS.items():
        if name not in heads:
            continue
        column = heads.index(name)
        canvas.text(left, top + 0.05, name, size=8, bold=True)
        for i, row in enumerate(rows):
            canvas.text(left, top + LINE * (i + 1) + 0.05, row[column], size=8.5)
        left += width
