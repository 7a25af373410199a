"""Tables that fit: what decides first, the others where there is room or they are asked for."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from typing import Any

import pytest

from attn_surgery import cli
from attn_surgery.errors import SurgeryError
from attn_surgery.reporting.formats import render
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row, Times
from attn_surgery.reporting.tables import GROUPS

COUNTS = {"elementwise_ops": 3_000_000, "bytes_moved": 2_000_000, "saved_bytes": 1_000_000}
TIMES: dict[str, Any] = {
    "latency_ms": 100.0,
    "latency_ratio": 1.1,
    "latency_q1_ms": 99.0,
    "latency_q3_ms": 111.0,
    "latency_p90_ms": 112.0,
    "latency_p99_ms": 113.0,
    "latency_ratio_low": 1.05,
    "latency_ratio_high": 1.15,
    "latency_added_ms": 10.0,
    "latency_added_copies": 8.0,
    "throughput": 10.0,
    "peak_bytes": 1_000_000,
}


def report(name: str = "resnet50") -> Report:
    rows = [
        Row(name, attention, 16 * bool(attention), 10**6, 10**9, **COUNTS, **TIMES)
        for attention in (None, "se", "cbam")
    ]
    return Report(tuple(rows))


def heads(text: str) -> list[str]:
    """Return the head of each table."""
    lines = text.splitlines()
    return [above for above, line in itertools.pairwise(lines) if line.startswith("-----")]


def cells(head: str) -> list[str]:
    return re.split(r"\s{2,}", head)


def widest(text: str) -> int:
    tables = text.split("\n\n")[:-1]
    return max(len(line) for table in tables for line in table.splitlines())


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120, 150, 200])
def test_a_table_is_no_wider_than_asked(width: int) -> None:
    text = report().text(width=width)
    assert widest(text) <= width
    assert len(heads(text)) == 2


def test_what_decides_is_left_to_the_last() -> None:
    narrow = report().text(width=40)  # wider than that, and no group less
    assert heads(narrow)[0].split() == "model attention params (M) added added %".split()
    assert heads(narrow)[1].endswith("ratio to host (95 %)")
    assert "latency (median ms)" not in narrow


def test_a_name_may_be_as_long_as_it_is() -> None:
    text = report("timm/" + 90 * "x").text()
    assert len(heads(text)) == 2
    assert 90 * "x" in text


def test_groups_go_as_a_whole_and_are_named() -> None:
    text = report().text()
    assert "MACs (G)" in text
    assert "saved (MB)" not in text
    told = next(line for line in text.splitlines() if line.startswith("left out"))
    assert told.startswith("left out to fit 100 characters: elementwise, moved, saved, ")
    assert told.endswith("; --wide, or text(width=None), shows all")
    counted, timed = heads(text)
    assert counted.count("added %") == 2
    assert timed.split()[:2] == ["model", "attention"]


def test_without_a_width_there_is_everything() -> None:
    text = report().text(width=None)
    assert "left out" not in text
    assert heads(text)[0].count("added %") == 5
    for each in ("quartiles (ms)", "p90, p99 (ms)", "inputs/s", "peak memory (MB)"):
        assert each in text


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_can_be_asked_for(group: str) -> None:
    text = report().text([group], width=10)
    (head,) = heads(text)
    assert head.split()[:2] == ["model", "attention"]
    assert "left out" not in text


def test_several_groups_in_the_order_of_the_table() -> None:
    text = report().text(["saved", "ratio", "sites"])
    counted, timed = heads(text)
    assert counted.split() == "model attention sites saved (MB) added %".split()
    assert timed.split() == "model attention ratio to host (95 %)".split()


def both_passes(clock: str) -> Report:
    """Return a report in which one clock says of both passes the same."""
    own = {name: value for name, value in TIMES.items() if name != "peak_bytes"}
    both = {**own, **{f"train_{name}": value for name, value in own.items()}}
    times = tuple(Times(clock, train, **own) for train in (False, True))
    of: dict[str, Any] = both if clock == "wall" else {"times": times}
    return Report(tuple(Row("net", each, 0, 10**6, 10**9, **of) for each in (None, "se")))


@pytest.mark.parametrize(
    ("clock", "alone", "told"),
    [
        ("wall", ["", "train step: "], ["wall clock latency", "wall clock train step"]),
        ("graph", ["graph: ", "graph train step: "], ["graph latency", "graph train step"]),
    ],
)
def test_what_was_measured_is_told(clock: str, alone: list[str], told: list[str]) -> None:
    ratio = "ratio to host (95 %)"
    (head,) = heads(both_passes(clock).text(["ratio"]))
    assert cells(head) == ["model", "attention", *(f"{each}{ratio}" for each in alone)]
    (head,) = heads(both_passes(clock).text(["ratio", "latency"]))
    first, second = (f"{each} (median ms)" for each in told)
    assert cells(head) == ["model", "attention", first, ratio, second, ratio]


def test_a_group_that_there_is_not() -> None:
    with pytest.raises(SurgeryError, match="columns='flops' is not supported; accepted: 'ratio'"):
        report().text(["flops"])


def test_documents_are_whole() -> None:
    for form in ("markdown", "latex"):
        assert "peak memory (MB)" in render(report(), form)
    assert "peak_bytes" in render(report(), "csv")
    assert "quartiles (ms)" not in render(report())
    assert "quartiles (ms)" in render(report(), width=None)


# The command


COMMAND = ["report", "torchvision/resnet18", "--no-latency"]


def printed(capsys: Any, *words: str) -> str:
    assert cli.main([*COMMAND, *words]) == 0
    return capsys.readouterr().out


def test_the_command(capsys: Any) -> None:
    plain = printed(capsys)
    assert widest(plain) <= 100
    assert "saved (MB)" in printed(capsys, "--wide")
    (head,) = heads(printed(capsys, "--columns", "saved", "moved"))
    assert "moved (MB)" in head
    assert "params" not in head
    assert cli.main([*COMMAND, "--columns", "saves"]) == 2
    assert "did you mean 'saved'" in capsys.readouterr().err


def test_a_narrow_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = os.terminal_size((70, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: size)
    assert widest(printed(capsys)) > 70  # a pipe is no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert widest(printed(capsys)) <= 70


def test_a_wide_terminal_is_not_filled(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = os.terminal_size((250, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: size)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert widest(printed(capsys)) <= 100
