"""A line that says how long something takes: on terminals alone, and gone when it is done."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest
import torchvision

import attn_surgery
from attn_surgery.reporting import waiting
from attn_surgery.reporting.measuring import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> str:
    """Return what a terminal shows in the end: carriage returns go back to the line's start."""
    line: list[str] = []
    for part in text.split("\r"):
        line[: len(part)] = part
    return "".join(line).strip()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.01)


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of stderr; no fixture can: pytest puts its own there after it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def until_said(stream: io.StringIO, text: str) -> None:
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


@pytest.mark.usefixtures("impatient")
def test_a_terminal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with waiting("net: planning"):
        until_said(terminal, "net: planning ... 0 s")
        assert shown(terminal.getvalue()) == "net: planning ... 0 s"
    assert shown(terminal.getvalue()) == ""


@pytest.mark.usefixtures("impatient")
def test_it_is_gone_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)

    def work() -> None:
        with waiting("planning"):
            until_said(terminal, "planning")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert shown(terminal.getvalue()) == ""
    assert not [each for each in threading.enumerate() if "_tell" in each.name]


def test_the_time_is_that_of_the_whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE_S", 0.6)
    with waiting("planning"):
        until_said(terminal, "planning ... ")
    assert "planning ... 1 s" in terminal.getvalue()
    assert "planning ... 0 s" not in terminal.getvalue()


def test_nothing_is_said_of_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with waiting("planning"):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_nothing_is_said_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with waiting("planning"):
            time.sleep(0.05)
        assert stream is None or stream.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_it_can_be_asked_for_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with waiting("planning", progress=False):
        time.sleep(0.05)
    assert terminal.getvalue() == ""
    with waiting("planning", progress=True):
        until_said(terminal, "planning")


@pytest.mark.usefixtures("impatient")
def test_a_plan_is_the_same_while_it_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    host = torchvision.models.resnet18()
    alone = attn_surgery.plan(host, "se")
    with waiting("planning"):
        told = attn_surgery.plan(host, "se")
        until_said(terminal, "planning")
    assert told == alone


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("asked", "is_said"), [(False, False), (None, True)])
def test_counting_is_told_of_where_progress_is(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, is_said: bool
) -> None:
    terminal = terminal_of(monkeypatch)
    host = torchvision.models.resnet50()
    attn_surgery.report(host, "se", latency=False, progress=asked)
    assert ("ResNet: counting ... " in terminal.getvalue()) == is_said
    assert shown(terminal.getvalue()) == ""
