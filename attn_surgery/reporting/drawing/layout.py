"""Where everything in a picture is: a title, a panel for each stage, a legend, why not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from attn_surgery.reporting.drawing.blocks import Block
from attn_surgery.reporting.drawing.boxes import DIAMOND, TAG_HEIGHT, Frame, box, framed, shortened
from attn_surgery.reporting.drawing.looks import LOOKS
from attn_surgery.reporting.drawing.numbers import COSTS, Costs
from attn_surgery.reporting.drawing.shapes import Group, Line, Picture, Rect, Shape, Text

WIDTH = 1064
MARGIN, INSET, GAP = 24, 16, 20
"""Around everything, within a panel, and between boxes, where an arrow goes."""
ROW_GAP = 14


def picture(
    title: str, blocks: Sequence[Block], costs: Costs | None = None, notes: Sequence[str] = ()
) -> Picture:
    """Lay out blocks in forward order.

    Args:
        title: What is drawn.
        blocks: The blocks.
        costs: What their attentions cost.
        notes: What else has to be said, a line or more each.
    """
    frame = framed(blocks, costs)
    summary = summed_up(blocks, costs)
    groups: list[Group] = []
    y = 42.0
    heading: list[Shape] = [Text(MARGIN, y, _cut_off(title, 80), "title")]
    for line in (summary, *notes):
        for part in textwrap.wrap(line, 135):
            y += 20
            heading.append(Text(MARGIN, y, part, "said"))
    groups.append(Group(tuple(heading)))
    y += 18
    for number, (stage, run) in enumerate(groupby(blocks, key=lambda block: block.stage)):
        if number:
            groups.append(Group((_arrow_down(y),)))
            y += 22
        panel, y = _panel(stage, list(run), y, frame)
        groups += panel
    legend, y = _legend(blocks, y + 26, costs)
    reasons, y = _reasons(blocks, y, frame)
    paper = Group((Rect(0, 0, WIDTH, y + MARGIN, "page"),))
    described = "; ".join([summary, *notes])
    return Picture(WIDTH, y + MARGIN, title, described, (paper, *groups, legend, *reasons))


def _cut_off(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def summed_up(blocks: Sequence[Block], costs: Costs | None) -> str:
    """Say what a plan comes to."""
    if not blocks:
        return "no residual block was found"
    cut = [block for block in blocks if block.is_cut]
    told = f"{_number(cut)} of {_number(blocks)} blocks get attention"
    if held := _number([block for block in blocks if block.held]):
        told += f"; {held} {'hold' if held > 1 else 'holds'} attention already"
    return told if costs is None else f"{told}; {costs.text(costs.total)} in all"


def _number(blocks: Sequence[Block]) -> int:
    return sum(len(block.paths) for block in blocks)


# Stages


def _panel(
    stage: str, blocks: Sequence[Block], y: float, frame: Frame
) -> tuple[list[Group], float]:
    """Return a stage, its blocks in as many rows as they need, and where it ends."""
    columns = int((WIDTH - 2 * MARGIN - 2 * INSET + GAP) / (frame.width + GAP))
    rows = -(-len(blocks) // columns)
    height = 32 + rows * (frame.height + ROW_GAP) + 2
    panel = Rect(MARGIN, y, WIDTH - 2 * MARGIN, height, "panel", 8)
    groups = [Group((panel, *_headline(stage, blocks, y + 20)))]
    for number, block in enumerate(blocks):
        row, column = divmod(number, columns)
        left = MARGIN + INSET + column * (frame.width + GAP)
        top = y + 32 + row * (frame.height + ROW_GAP)
        if number:
            groups.append(Group(tuple(_arrow(left - 15, left - 3, top + frame.height / 2))))
        groups.append(box(block, left, top, frame))
    return groups, y + height


def _headline(stage: str, blocks: Sequence[Block], y: float) -> Iterator[Text]:
    types = dict.fromkeys(site.block_type for block in blocks for site in block.sites)
    number = _number(blocks)
    x = MARGIN + INSET
    name = shortened(stage or "(the host)", "stage", WIDTH / 2, at_end=False)
    yield Text(x, y, name, "stage")
    about = f"{number} block{'s' * (number > 1)}: {', '.join(types)}"
    x += LOOKS["stage"].letter * len(name) + 14
    yield Text(x, y, shortened(about, "about", WIDTH - MARGIN - INSET - x), "about")


def _arrow(x: float, end: float, y: float) -> Iterator[Line]:
    yield Line(((x, y), (end, y)), "arrow")
    yield Line(((end - 5, y - 4), (end, y), (end - 5, y + 4)), "arrow")


def _arrow_down(y: float) -> Line:
    x = MARGIN + INSET + 12
    points = ((x, y + 2), (x, y + 20), (x - 4, y + 15), (x, y + 20), (x + 4, y + 15))
    return Line(points, "arrow")


# What is said below


def _legend(blocks: Sequence[Block], y: float, costs: Costs | None) -> tuple[Group, float]:
    """Return what the marks mean, of those that there are, a line each."""
    shapes: list[Shape] = []
    marks = [
        (any(block.is_cut for block in blocks), "cut", "attention goes in here"),
        (
            any(block.held for block in blocks),
            "held",
            f"{DIAMOND} and a second rim: holds attention already, at the path in the block",
        ),
        (
            any(not block.is_cut for block in blocks),
            "skipped",
            "no attention goes in; the number says why",
        ),
        (any(len(block.paths) > 1 for block in blocks), "several", "blocks that are alike"),
        (costs is not None and any(block.cost for block in blocks), "bar", _about(costs)),
    ]
    for is_there, look, text in marks:
        if is_there:
            shapes += [*_sample(look, MARGIN, y), Text(MARGIN + 38, y + 12, text, "said")]
            y += 22
    return Group(tuple(shapes)), y


def _sample(look: str, x: float, y: float) -> list[Shape]:
    height = TAG_HEIGHT - 1
    if look == "bar":
        return [Rect(x, y + 5, 26, 5, "track"), Rect(x, y + 5, 16, 5, "bar")]
    if look == "several":
        return [Rect(x + d, y + d, 22, height - 4, "behind-cut", 3) for d in (4, 2, 0)]
    if look == "held":
        outer = Rect(x, y, 26, height, "skipped", 3)
        return [outer, Rect(x + 3, y + 3, 20, height - 6, "held-rim", 2)]
    return [Rect(x, y, 26, height, look, 3)]


def _about(costs: Costs | None) -> str:
    if costs is None:
        return ""
    return f"what the attention adds: {COSTS[costs.name][1]}; the longest bar is the largest"


def _reasons(blocks: Sequence[Block], y: float, frame: Frame) -> tuple[list[Group], float]:
    """Return why blocks are skipped, each reason with its number and its blocks."""
    groups = []
    letters = int((WIDTH - 2 * MARGIN - 38) / LOOKS["why"].letter)
    for reason, number in frame.numbers.items():
        names = [block.title for block in blocks if reason in block.reasons]
        lines = [*textwrap.wrap(reason, letters), *textwrap.wrap(", ".join(names), letters)]
        y += 8
        shapes: list[Shape] = [Text(MARGIN, y + 12, f"({number})", "number")]
        for line in lines:
            shapes.append(Text(MARGIN + 38, y + 12, line, "why"))
            y += 16
        groups.append(Group(tuple(shapes)))
    return groups, y
