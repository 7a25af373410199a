"""The picture of a report: labels that can be read, intervals that leave room, the frontier."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_surgery.errors import SurgeryError
from attn_surgery.reporting.plot import Point, drawn, frontier, plot
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row

pytest.importorskip("adjustText")

HOST = 25_557_032


def row(
    attention: str | None, params: int, added: float, low: float, high: float, model: str = "net"
) -> Row:
    return Row(
        *(model, attention, 16 * bool(attention), params, 10**9),
        latency_ms=100 + added,
        latency_ratio=1 + added / 100,
        latency_ratio_low=1 + low / 100,
        latency_ratio_high=1 + high / 100,
        latency_added_ms=added,
    )


def report(*others: Row) -> Report:
    return Report((row(None, HOST, 0, 0, 0), *others), provenance={"batch_size": 1, "device": "x"})


CROWDED = report(
    row("se", 28_088_024, 5.5, 4, 7),
    row("cbam", 28_089_624, 18, 15, 21),
    row("coord", 28_000_000, 7, 6, 8),
    row("eca", HOST + 86, 5.2, 4, 6),
    row("simam", HOST + 16, 5.4, 5, 7),
    row("triplet", HOST + 4_800, 5.3, 5, 7),
)


def boxes(figure: Any) -> dict[str, Any]:
    """Return where each label is, in pixels."""
    (axes,) = figure.axes
    figure.draw_without_rendering()
    names = {text.get_text(): text for text in axes.texts if text.get_text()}
    return {name: text.get_window_extent() for name, text in names.items()}


def test_labels_do_not_fall_on_each_other() -> None:
    found = boxes(drawn(CROWDED))
    assert set(found) == {"se", "cbam", "coord", "eca", "simam", "triplet"}
    for a, b in itertools.combinations(found.values(), 2):
        assert not a.overlaps(b)


def test_labels_are_within_the_picture() -> None:
    figure = drawn(CROWDED)
    for box in boxes(figure).values():
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_a_long_interval_is_cut_off_with_an_arrow() -> None:
    wild = row("gc", 26_000_000, 6, -300, 900)
    plain, noisy = drawn(CROWDED), drawn(report(*CROWDED.rows[1:], wild))
    heights = [axes.get_ylim()[1] - axes.get_ylim()[0] for axes in (plain.axes[0], noisy.axes[0])]
    assert heights[1] < 1.7 * heights[0]
    assert markers(plain) == []
    assert sorted(markers(noisy)) == ["^", "v"]


def markers(figure: Any) -> list[str]:
    return [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in ("^", "v")]


def test_whole_intervals_are_seen_where_they_are_alike() -> None:
    low, high = drawn(CROWDED).axes[0].get_ylim()
    assert low < 0
    assert high > 21


def test_one_alone() -> None:
    figure = drawn(report(row("se", 28_088_024, 5.5, 5.5, 5.5)))
    low, high = figure.axes[0].get_ylim()
    assert low < 0 < 5.5 < high


def test_several_hosts_are_told_apart() -> None:
    other = [row(a, HOST + 9 * bool(a), 3 * bool(a), 0, 3, "other") for a in (None, "se")]
    both = Report((*CROWDED.rows, *other), provenance={})
    assert {"net + se", "other + se"} <= set(boxes(drawn(both)))


points = st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 9)), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(points)
def test_the_frontier(drawn_points: list[tuple[int, int]]) -> None:
    all_points = [Point(str(i), x, y, y, y) for i, (x, y) in enumerate(drawn_points)]

    def is_beaten(each: Point) -> bool:
        return any(
            other.params <= each.params
            and other.added <= each.added
            and (other.params, other.added) != (each.params, each.added)
            for other in all_points
        )

    best = frontier(all_points)
    expected = {(each.params, each.added) for each in all_points if not is_beaten(each)}
    assert [(each.params, each.added) for each in best] == sorted(expected)


def test_without_adjusttext(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adjustText", None)
    with pytest.raises(SurgeryError, match="a picture needs adjustText: pip install"):
        plot(CROWDED, "x.png")
