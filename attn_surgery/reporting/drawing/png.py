"""A picture as PNG, by Matplotlib, in light colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attn_surgery.reporting.drawing.figures import imported, new_figure
from attn_surgery.reporting.drawing.looks import COLOURS, LIGHT, LOOKS, Look
from attn_surgery.reporting.drawing.shapes import Line, Picture, Rect, Shape

SCALE = 2
"""Dots for each pixel of a picture, for screens of high resolution."""
_INCH = 100  # pixels
_POINT = _INCH / 72


def write_png(picture: Picture, path: str | Path) -> None:
    """Draw a picture to a file.

    Raises:
        SurgeryError: Matplotlib is not installed.
        OSError: The file cannot be written.
    """
    drawn = new_figure(picture.width / _INCH, picture.height / _INCH)
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.axis("off")
    shapes = [shape for group in picture.groups for shape in group.shapes]
    for order, shape in enumerate(shapes):
        _draw(axes, shape, order)
    drawn.savefig(path, format="png", dpi=SCALE * _INCH, metadata={"Title": picture.title})


def _draw(axes: Any, shape: Shape, order: int) -> None:
    look = LOOKS[shape.look]
    if isinstance(shape, Rect):
        patches: Any = imported("matplotlib.patches")
        axes.add_patch(
            patches.FancyBboxPatch(
                (shape.x, shape.y),
                shape.width,
                shape.height,
                boxstyle=f"round,pad=0,rounding_size={shape.radius}",
                facecolor=COLOURS[look.fill][LIGHT] if look.fill else "none",
                edgecolor=COLOURS[look.stroke][LIGHT] if look.stroke else "none",
                linewidth=look.width / _POINT,
                linestyle=_dashes(look),
                zorder=order,
            )
        )
    elif isinstance(shape, Line):
        across, down = zip(*shape.points, strict=True)
        colour = COLOURS[look.stroke][LIGHT]
        axes.plot(across, down, color=colour, linewidth=look.width / _POINT, zorder=order)
    else:
        axes.text(
            shape.x,
            shape.y,
            shape.text,
            color=COLOURS[look.fill][LIGHT],
            size=look.size / _POINT,
            weight="bold" if look.is_bold else "normal",
            family="DejaVu Sans Mono" if look.is_monospaced else "DejaVu Sans",
            parse_math=False,
            zorder=order,
        )


def _dashes(look: Look) -> Any:
    """Return the dashes as Matplotlib takes them, as multiples of the line's width."""
    return (0, [length / look.width for length in look.dashes]) if look.dashes else "solid"
