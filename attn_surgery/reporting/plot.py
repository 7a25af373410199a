"""Added latency against added parameters, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.reporting.drawing import imported, new_figure
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row

ROOM = 0.3
"""How much of the medians' range is left free below and above them."""


@dataclass(frozen=True)
class Point:
    """One attention.

    Attributes:
        title: What it is called.
        params: Parameters added, in millions.
        added: Latency added, in milliseconds.
        low: Lower end of its interval.
        high: Upper end.
    """

    title: str
    params: float
    added: float
    low: float
    high: float


def plot(report: Report, path: str | Path) -> None:
    """Draw one point for each attention, with the 95 % interval of its ratio, to an image file.

    A line joins those to which no other is preferable in both. An interval that is so long that the
    others could not be told apart is cut off, with an arrow.

    Args:
        report: Measured.
        path: The file; its ending says the format.

    Raises:
        SurgeryError: Matplotlib or adjustText is not installed, nothing was measured, or the file
            cannot be written.
    """
    try:
        drawn(report).savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SurgeryError(f"cannot write {path}: {one_line(error)}") from error


def drawn(report: Report) -> Any:
    """Return the figure.

    Raises:
        SurgeryError: As `plot` does.
    """
    points = _points(report)
    if not points:
        raise SurgeryError("nothing to plot: no attention's latency was measured")
    figure = _figure()
    axes = figure.add_subplot(
        xlabel="added parameters (M)",
        ylabel="added latency (ms, median of paired differences)",
        title=_title(report),
    )
    low, high = _limits(points)
    axes.set_ylim(low, high)
    axes.axhline(0, color="0.7", linewidth=0.8)
    best = frontier(points)
    axes.plot(
        [each.params for each in best],
        [each.added for each in best],
        color="0.8",
        linewidth=1.5,
        zorder=0,
        label="none is cheaper in both",
    )
    for each in points:
        _draw(axes, each, low, high)
    axes.margins(x=0.15)
    axes.legend(loc="best", frameon=False)
    _label(figure, axes, points)
    return figure


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return those to which no other is preferable: with as few parameters, as fast, and not both.

    Example:
        >>> a, b, c = (Point(n, x, y, y, y) for n, x, y in (("a", 1, 3), ("b", 2, 1), ("c", 3, 2)))
        >>> [each.title for each in frontier([c, b, a])]
        ['a', 'b']
    """
    best: list[Point] = []
    for each in sorted(points, key=lambda point: (point.params, point.added)):
        if not best or each.added < best[-1].added:
            best.append(each)
    return best


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    """Return what the axis of latencies shows: 0, all medians, and what fits of the intervals."""
    medians = [0.0, *(each.added for each in points)]
    least, most = min(medians), max(medians)
    usual = statistics.median(each.high - each.low for each in points)
    room = max(ROOM * (most - least), usual, 1e-6)
    low = max(least - room, min(least, *(each.low for each in points)) - 0.1 * room)
    high = min(most + room, max(most, *(each.high for each in points)) + 0.1 * room)
    return low, high


def _draw(axes: Any, point: Point, low: float, high: float) -> None:
    ends = [[max(0.0, point.added - point.low)], [max(0.0, point.high - point.added)]]
    bars = axes.errorbar(point.params, point.added, yerr=ends, fmt="o", capsize=3)
    colour = bars.lines[0].get_color()
    for end, edge, marker in ((point.low < low, low, "v"), (point.high > high, high, "^")):
        if end:
            axes.plot(point.params, edge, marker, color=colour, markersize=8, clip_on=False)


def _label(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Write the titles where they fall on nothing."""
    place: Any = imported("adjustText")
    figure.draw_without_rendering()  # what is laid out moves the axes
    texts = [axes.text(each.params, each.added, each.title) for each in points]
    place.adjust_text(
        texts,
        [each.params for each in points],
        [each.added for each in points],
        ax=axes,
        expand=(1.3, 1.6),
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
    )


def check_plot(path: str | Path) -> None:
    """Refuse a picture that could not be drawn, before the measurement.

    Raises:
        SurgeryError: Matplotlib is not installed, or knows no format with that ending.
    """
    known = _figure().canvas.get_supported_filetypes()
    ending = Path(path).suffix.removeprefix(".")
    if ending not in known:
        raise SurgeryError(f"cannot draw to {path}: end it in one of {', '.join(sorted(known))}")


def _figure() -> Any:
    imported("adjustText")
    return new_figure(7, 4.5, layout="constrained")


def _points(report: Report) -> list[Point]:
    hosts = {row.model: row for row in report.rows if row.attention is None}
    several = len(hosts) > 1
    points = []
    for row in report.rows:
        point = _point(row, hosts.get(row.model), several)
        if point is not None:
            points.append(point)
    return points


def _point(row: Row, host: Row | None, several: bool) -> Point | None:
    if row.attention is None or host is None or host.latency_ms is None or host.params is None:
        return None
    low, ratio, high = row.latency_ratio_low, row.latency_ratio, row.latency_ratio_high
    if row.params is None or row.latency_added_ms is None or not (low and ratio and high):
        return None
    title = row.title if several else row.attention
    added, scale = row.latency_added_ms, host.latency_ms
    ends = added - scale * (ratio - low), added + scale * (high - ratio)
    return Point(title, (row.params - host.params) / 1e6, added, *ends)


def _title(report: Report) -> str:
    models = ", ".join(dict.fromkeys(row.model for row in report.rows))
    told = report.provenance
    return f"{models}: batch {told.get('batch_size', '?')}, {told.get('device', '?')}"
