"""The box of one block: its name, what goes in or why nothing does, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attn_surgery.reporting.drawing.blocks import Block, short_name
from attn_surgery.reporting.drawing.looks import LOOKS
from attn_surgery.reporting.drawing.numbers import Costs
from attn_surgery.reporting.drawing.shapes import Group, Rect, Shape, Text

PAD = 10
LEAST, MOST = 146, 250
"""The width of a box, within which its texts decide."""
TAG_HEIGHT = 17
DIAMOND = "◆"
"""Stands before attention that is there already."""


@dataclass(frozen=True)
class Frame:
    """What all boxes of a picture share.

    Attributes:
        width: Of a box.
        height: Of a box.
        costs: What the sites cost; None where that is not known.
        numbers: A reason for skipping to its number in the list below.
    """

    width: float
    height: float
    costs: Costs | None
    numbers: Mapping[str, int]


def framed(blocks: Sequence[Block], costs: Costs | None) -> Frame:
    """Return a frame into which the blocks fit."""
    reasons = dict.fromkeys(reason for block in blocks for reason in block.reasons)
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    widths = [_wanted(block, numbers) for block in blocks]
    width = min(max([LEAST, *widths]), MOST)
    return Frame(width, 68 if costs is None else 95, costs, numbers)


def box(block: Block, x: float, y: float, frame: Frame) -> Group:
    """Draw a block; ``x`` and ``y`` are the upper left corner of its box."""
    look = "cut" if block.is_cut else "skipped"
    width, height = frame.width, frame.height
    shapes: list[Shape] = []
    if len(block.paths) > 1:
        shapes += [Rect(x + d, y + d, width, height, f"behind-{look}", 5) for d in (6, 3)]
        shapes.append(Rect(x, y, width, height, "page", 5))
    shapes.append(Rect(x, y, width, height, look, 5))
    if block.held:
        shapes.append(Rect(x + 3, y + 3, width - 6, height - 6, "held-rim", 3))
    inner = width - 2 * PAD
    shapes += [
        Text(x + PAD, y + 19, shortened(_name(block), "name", inner, at_end=False), "name"),
        Text(x + PAD, y + 35, shortened(_detail(block), "detail", inner), "detail"),
        *_tags(block, x + PAD, y + 42, inner, frame.numbers),
    ]
    if frame.costs is not None and block.is_cut and block.cost is not None:
        shapes += _bar(block, block.cost, x + PAD, y + 67, inner, frame.costs)
    return Group(tuple(shapes), told(block, frame.costs))


def told(block: Block, costs: Costs | None) -> str:
    """Return all that is known of a block, a line each."""
    lines = [f"{block.title} ({block.types})", _detail(block)]
    for site, given in zip(block.sites, block.attention, strict=True):
        if given:
            lines.append(f"{given} after {site.after}, by {site.method}")
    lines += [f"holds attention already: {path}" for path in block.held]
    lines += [f"skipped: {reason}" for reason in block.reasons]
    if costs is not None and block.cost is not None:
        lines.append(costs.text(block.cost) + block.each)
    return "\n".join(lines)


def shortened(text: str, look: str, width: float, *, at_end: bool = True) -> str:
    """Return a text that fits into a width, an ellipsis in place of its end, or of its beginning.

    Example:
        >>> shortened("backbone.body.layer3.4", "name", 100, at_end=False)
        '…ody.layer3.4'
    """
    room = int(width / LOOKS[look].letter + 1e-6)
    if len(text) <= room:
        return text
    return text[: room - 1] + "…" if at_end else "…" + text[len(text) - room + 1 :]


def _wanted(block: Block, numbers: Mapping[str, int]) -> float:
    """Return how wide a box would have to be."""
    tags = sum(_tag_width(text, look) + 6 for look, _, text in _labels(block, numbers))
    texts = (("name", _name(block)), ("detail", _detail(block)))
    return 2 * PAD + max([tags, *(LOOKS[look].letter * len(text) for look, text in texts)])


def _name(block: Block) -> str:
    ends = dict.fromkeys((block.paths[0], block.paths[-1]))
    return " to ".join(map(short_name, ends))


def _detail(block: Block) -> str:
    after = f"after {', '.join(block.afters)}" if block.afters else ""
    channels = f"{', '.join(map(str, block.channels))} ch" if block.channels else ""
    return " · ".join(filter(None, [after, channels]))


# Tags


def _labels(block: Block, numbers: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return look of the tag, look of its text, and text of each tag of a block."""
    several = f" x {len(block.paths)}" if len(block.paths) > 1 else ""
    labels = [("tag", "on-tag", f"+ {text}{several}") for text in block.added]
    if not block.is_cut:
        listed = ", ".join(str(numbers[reason]) for reason in block.reasons)
        labels.append(("", "why", f"skipped ({listed}){several}"))
    return labels + [("held", "on-held", f"{DIAMOND} {path}") for path in block.held]


def _tags(
    block: Block, x: float, y: float, width: float, numbers: Mapping[str, int]
) -> list[Shape]:
    shapes: list[Shape] = []
    end = x + width
    for look, on, text in _labels(block, numbers):
        inside = 6 if look else 0
        shown = shortened(text, on, end - x - 2 * inside)
        if end - x < 30:
            break  # what is left out is said on hover, and in the table
        wide = LOOKS[on].letter * len(shown) + 2 * inside
        shapes += [Rect(x, y, wide, TAG_HEIGHT, look, 4)] if look else []
        shapes.append(Text(x + inside, y + 12.5, shown, on))
        x += wide + 6
    return shapes


def _tag_width(text: str, look: str) -> float:
    return LOOKS["on-tag"].letter * len(text) + 12 * bool(look)


# Costs


def _bar(block: Block, cost: int, x: float, y: float, width: float, costs: Costs) -> list[Shape]:
    most = max(map(abs, costs.by_block.values()))
    share = abs(cost) / most if most else 0.0
    number = shortened(costs.text(cost) + block.each, "detail", width)
    bar = [Rect(x, y, max(1.0, share * width), 5, "bar")] if cost else []
    return [Rect(x, y, width, 5, "track"), *bar, Text(x, y + 18, number, "detail")]
