"""A page of HTML: the picture, and the same as a table, for who does not see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from attn_surgery.reporting.drawing.blocks import Block
from attn_surgery.reporting.drawing.looks import COLOURS, DARK, LIGHT
from attn_surgery.reporting.drawing.numbers import COSTS, Costs
from attn_surgery.reporting.drawing.shapes import Picture
from attn_surgery.reporting.drawing.svg import svg


def page(picture: Picture, blocks: Sequence[Block], costs: Costs | None = None) -> str:
    """Return a whole page."""
    title = escape(picture.title)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_style()}</style>'
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>',
            '<div class="picture">',
            svg(picture),
            "</div>",
            *_table(picture.title, blocks, costs),
            "</body></html>\n",
        ]
    )


def _table(title: str, blocks: Sequence[Block], costs: Costs | None) -> Iterator[str]:
    """Yield the lines of a table, without the columns in which nothing is."""
    columns = {
        "block": [block.title for block in blocks],
        "type": [block.types for block in blocks],
        "after": [", ".join(block.afters) for block in blocks],
        "channels": [", ".join(map(str, block.channels)) for block in blocks],
        "attention": [", ".join(block.added) for block in blocks],
        "added": ["" if costs is None else _added(block, costs) for block in blocks],
        "there already": [", ".join(block.held) for block in blocks],
        "skipped because": ["; ".join(block.reasons) for block in blocks],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    yield f"<table><caption>{escape(title)}, block by block</caption>"
    yield f"<thead>{_row('th', shown)}</thead><tbody>"
    yield from (_row("td", cells) for cells in zip(*shown.values(), strict=True))
    yield "</tbody></table>"


def _added(block: Block, costs: Costs) -> str:
    if block.cost is None or not block.is_cut:
        return ""
    return f"{block.cost:+,} {COSTS[costs.name][0]}{block.each}"


def _row(tag: str, cells: Iterable[str]) -> str:
    scope = " scope=col" if tag == "th" else ""
    return f"<tr>{''.join(f'<{tag}{scope}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _style() -> str:
    return (
        f"body{{{_colours(LIGHT)}font:14px system-ui,sans-serif;margin:0 auto;max-width:1064px}}"
        ".picture{overflow-x:auto}svg{max-width:none}"
        "table{border-collapse:collapse;margin:24px;max-width:992px}"
        "caption{text-align:left;font-weight:bold;padding:8px 0}"
        "th,td{text-align:left;vertical-align:top;padding:3px 14px 3px 0;"
        "border-bottom:1px solid #8886}"
        f"@media(prefers-color-scheme:dark){{body{{{_colours(DARK)}}}}}"
    )


def _colours(scheme: int) -> str:
    return f"background:{COLOURS['page'][scheme]};color:{COLOURS['ink'][scheme]};"
