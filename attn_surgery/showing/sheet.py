"""What is shown on one sheet, for the eye: drawn by matplotlib, on scales that never change."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy

from attn_surgery.finetune.process import need
from attn_surgery.reporting import new_figure
from attn_surgery.showing.colours import (
    SCALE,
    activation_scale,
    gate_scale,
    over_activation,
    over_gates,
)
from attn_surgery.showing.exhibits import Exhibits, Response, Shown
from attn_surgery.showing.gates import Numbers
from attn_surgery.showing.sheet_channels import LINE, MARGIN, channels_width, draw_channels
from attn_surgery.showing.sheet_layout import Canvas
from attn_surgery.showing.tables import percent, range_text

MOST = 12
"""Images on a sheet; a page has all."""
_HEAD = 0.75
_LARGE, _SMALL, _GAP = 2.4, 1.0, 0.14
"""Sides of pictures and of sites' maps, and what is between them, in inches."""
_TITLE, _SMALL_TITLE = 0.5, 0.34
_COLUMNS = 13
"""Of sites' maps, at most."""


def sheet(exhibits: Exhibits) -> bytes:
    """Return the content of a ``.png`` file.

    Raises:
        SurgeryError: Matplotlib is not installed.
    """
    file = io.BytesIO()
    drawn(exhibits).savefig(file, format="png", dpi=100)
    return file.getvalue()


def drawn(exhibits: Exhibits) -> Any:
    """Return the figure.

    Raises:
        SurgeryError: Matplotlib is not installed.
    """
    need("matplotlib", extra="show")
    layout = _Layout.of(exhibits)
    figure = new_figure(layout.width, layout.height, facecolor="white")
    canvas = Canvas(figure, layout.width, layout.height)
    _draw_head(canvas, exhibits, layout.notes)
    top = MARGIN + layout.head
    for number in layout.pictured:
        _draw_models(canvas, exhibits, exhibits.images[number], top)
        _draw_sites(canvas, exhibits, number, top, layout)
        top += layout.block
    draw_channels(canvas, exhibits, MARGIN, top)
    return figure


@dataclass(frozen=True)
class _Layout:
    """Where things are, in inches.

    Attributes:
        pictured: The numbers of the images that are drawn.
        notes: Lines.
        head: How high all above the images is.
        block: How high all of one image is.
        left: Where sites' maps begin.
        columns: Of sites' maps.
        width: Of the sheet.
        height: Of the sheet.
    """

    pictured: list[int]
    notes: list[str]
    head: float
    block: float
    left: float
    columns: int
    width: float
    height: float

    @classmethod
    def of(cls, exhibits: Exhibits) -> _Layout:
        pictured = [i for i, each in enumerate(exhibits.images) if each.picture is not None][:MOST]
        sites = sum(each.has_images for each in exhibits.sites) if pictured else 0
        rows = max(2, math.ceil(sites / _COLUMNS))
        columns = math.ceil(sites / rows)
        block = max(_TITLE + _LARGE, rows * (_SMALL_TITLE + _SMALL)) + 2 * _GAP
        left = MARGIN + (3 if exhibits.layer else 1) * (_LARGE + _GAP)
        width = max(channels_width(exhibits), left + columns * (_SMALL + _GAP) + MARGIN)
        notes = _notes(exhibits, width)
        head = _HEAD + 0.2 * len(notes) + 0.65
        height = head + block * len(pictured) + LINE * (len(exhibits.sites) + 4) + 2 * MARGIN
        return cls(pictured, notes, head, block, left, columns, width, height)


def _notes(exhibits: Exhibits, width: float) -> list[str]:
    notes = list(exhibits.notes)
    if (images := len(exhibits.images)) > MOST:
        notes.append(f"{MOST} of {images} images; the numbers below are those of all")
    if all(each.picture is None for each in exhibits.images):
        notes.append("no maps over the images: they are for images of 2 dims of space")
    return [line for note in notes for line in textwrap.wrap(note, int(12 * width))]


# The head


def _draw_head(canvas: Canvas, exhibits: Exhibits, notes: list[str]) -> None:
    told = f"{len(exhibits.sites)} sites with {exhibits.attentions}; {len(exhibits.images)} images"
    canvas.text(MARGIN, MARGIN, f"What attention does in {exhibits.model}", size=15, bold=True)
    canvas.text(MARGIN, MARGIN + 0.36, told, size=10)
    for i, note in enumerate(notes):
        canvas.text(MARGIN, MARGIN + 0.64 + 0.2 * i, note, size=8.5, colour="0.25")
    top = MARGIN + _HEAD + 0.2 * len(notes)
    scale = canvas.picture(MARGIN, top + 0.02, 3.0, 0.2, gate_scale())
    canvas.ticks(
        scale,
        numpy.interp([0.5, 0.75, 1, 1.25, 1.5], SCALE, numpy.arange(SCALE.size)),
        ["0.5", "0.75", "1", "1.25", "1.5"],
    )
    canvas.text(MARGIN + 3.15, top + 0.04, "gate; 1: no colour, beyond: striped", size=8)
    if exhibits.layer:
        scale = canvas.picture(MARGIN + 6.0, top + 0.02, 2.0, 0.2, activation_scale())
        canvas.ticks(scale, [0, SCALE.size - 1], ["0", "1"])
        told = "activation; 1: greater peak of the two"
        canvas.text(MARGIN + 8.15, top + 0.04, told, size=8)


# One image


def _draw_models(canvas: Canvas, exhibits: Exhibits, shown: Shown, top: float) -> None:
    """Draw what the models see, and what each looks at."""
    label = f"  [{shown.label}]" if shown.label else ""
    explained = shown.host.target
    told = "" if explained is None else f"map of: {_short(exhibits.classes[explained], 30)}"
    assert shown.picture is not None
    pictures = [(f"{_short(shown.name, 30)}{label}", told, shown.picture)]
    for title, response in (("host", shown.host), ("operated", shown.operated)):
        if (drawn_map := _mapped(shown, response)) is not None:
            peak = "" if title == "host" else f"map moved {percent(shown.moved) or '-'} %, "
            note = f"{peak}peak {shown.peak(response):.3f}"
            pictures.append((_guess(exhibits, title, response), note, drawn_map))
    for i, (title, note, picture) in enumerate(pictures):
        left = MARGIN + i * (_LARGE + _GAP)
        canvas.text(left, top + 0.08, title, size=8.5, bold=True)
        canvas.text(left, top + 0.27, note, size=8)
        canvas.picture(left, top + _TITLE, _LARGE, _LARGE, picture)


def _guess(exhibits: Exhibits, title: str, response: Response) -> str:
    ((number, value),) = response.best(1)
    return f"{title}: {_short(exhibits.classes[number], 17)} {100 * value:.1f} %"


def _mapped(shown: Shown, response: Response) -> Numbers | None:
    """Return a class activation map over its picture, on the scale of both models; or None."""
    if shown.picture is None or response.activation_map is None:
        return None
    return over_activation(shown.picture, response.activation_map, shown.greatest)


def _draw_sites(
    canvas: Canvas, exhibits: Exhibits, number: int, top: float, layout: _Layout
) -> None:
    """Draw the gates of each site's positions over one image, each beside its numbers."""
    picture = exhibits.images[number].picture
    for i, site in enumerate(each for each in exhibits.sites if each.has_images):
        gate = site.gates[number]
        if gate.position is None or picture is None:
            continue
        x = layout.left + (i % layout.columns) * (_SMALL + _GAP)
        y = top + 0.08 + (i // layout.columns) * (_SMALL_TITLE + _SMALL)
        canvas.text(x, y, _short(site.title, 17), size=7, bold=True)
        canvas.text(x, y + 0.13, range_text(gate.position_range), size=7)
        canvas.picture(x, y + 0.28, _SMALL, _SMALL, over_gates(picture, gate.position))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
