"""A picture as SVG: what is said on hover in ``title`` elements, light and dark by the reader's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from attn_surgery.reporting.drawing.looks import COLOURS, DARK, LIGHT, LOOKS, Look
from attn_surgery.reporting.drawing.shapes import Group, Picture, Rect, Shape, Text

_MONOSPACED = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_PROPORTIONAL = "system-ui,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif"


def svg(picture: Picture) -> str:
    """Return a picture as an SVG element that stands alone, or in a page."""
    width, height = _short(picture.width), _short(picture.height)
    looks = dict.fromkeys(shape.look for group in picture.groups for shape in group.shapes)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'aria-labelledby="plan-title plan-about">',
            f'<title id="plan-title">{_said(picture.title)}</title>',
            f'<desc id="plan-about">{_said(picture.description)}</desc>',
            "<style>",
            *_styles(looks),
            "</style>",
            *map(_group, picture.groups),
            "</svg>",
        ]
    )


def _styles(looks: dict[str, None]) -> Iterator[str]:
    for name in looks:
        yield f".p-{name}{{{_colours(LOOKS[name], LIGHT)}{_form(LOOKS[name])}}}"
    yield "@media(prefers-color-scheme:dark){"
    for name in looks:
        yield f".p-{name}{{{_colours(LOOKS[name], DARK)}}}"
    yield "}"


def _colours(look: Look, scheme: int) -> str:
    fill = COLOURS[look.fill][scheme] if look.fill else "none"
    return f"fill:{fill};" + (f"stroke:{COLOURS[look.stroke][scheme]};" if look.stroke else "")


def _form(look: Look) -> str:
    parts = [f"stroke-width:{_short(look.width)}"] if look.stroke else []
    if look.dashes:
        parts.append(f"stroke-dasharray:{','.join(map(_short, look.dashes))}")
    if look.size:
        family = _MONOSPACED if look.is_monospaced else _PROPORTIONAL
        parts.append(f"font:{'bold ' * look.is_bold}{_short(look.size)}px {family}")
        parts.append("white-space:pre")
    return ";".join(parts)


def _group(group: Group) -> str:
    title = f"<title>{_said(group.title)}</title>" if group.title else ""
    return "\n".join(["<g>" + title, *map(_shape, group.shapes), "</g>"])


def _shape(shape: Shape) -> str:
    look = f'class="p-{shape.look}"'
    if isinstance(shape, Rect):
        radius = f' rx="{_short(shape.radius)}"' if shape.radius else ""
        size = f'width="{_short(shape.width)}" height="{_short(shape.height)}"'
        return f'<rect {look} x="{_short(shape.x)}" y="{_short(shape.y)}" {size}{radius}/>'
    if isinstance(shape, Text):
        place = f'x="{_short(shape.x)}" y="{_short(shape.y)}"'
        return f"<text {look} {place}>{_said(shape.text)}</text>"
    points = " ".join(f"{_short(x)},{_short(y)}" for x, y in shape.points)
    return f'<polyline {look} points="{points}"/>'


def _said(text: str) -> str:
    """Return a text as XML takes it, which has no control characters."""
    return escape(_UNSAYABLE.sub("\N{REPLACEMENT CHARACTER}", text))


_UNSAYABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
