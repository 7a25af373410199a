"""``attn-surgery plan``: its drawing, its folded rows, and what is seen while it works."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from attn_surgery import cli
from attn_surgery.cli import parser
from attn_surgery.cli import plan as plan_command
from attn_surgery.reporting import plan_drawing
from attn_surgery.reporting.drawing import COSTS
from attn_surgery.reporting.measuring import progress

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/drawings.md").read_text()
RESNET = ["plan", "torchvision/resnet18", "--attention", "se"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("ending", "begin"), [("svg", b"<svg "), ("html", b"<!DOCTYPE html>"), ("png", b"\x89PNG")]
)
def test_a_plan_is_drawn_and_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ending: str, begin: bytes
) -> None:
    path = tmp_path / f"plan.{ending}"
    status, out, err = run(capsys, *RESNET, "--draw", str(path))
    assert (status, err) == (0, "")
    assert "8 sites to cut" in out
    assert path.read_bytes().startswith(begin)


def test_the_words_reach_the_drawing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    words = ["--draw", str(path), "--cost", "macs", "--input", "3x32x32", "--position", "mid"]
    assert run(capsys, *RESNET, *words)[0] == 0
    text = path.read_text()
    assert "torchvision/resnet18 + se" in text
    assert "one input of 3x32x32" in text
    assert "after relu" in text
    assert " MACs</text>" in text


def test_all_shows_each_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_drawing, "LONG", 15)
    path = tmp_path / "plan.svg"
    words = ["plan", "torchvision/resnet34", "--draw", str(path)]
    _, folded, _ = run(capsys, *words)
    assert "layer3.0 to layer3.5" in folded
    assert ">layer3.0 to layer3.5</text>" in path.read_text()
    assert "layer3.4" not in folded + path.read_text()
    _, whole, _ = run(capsys, *words, "--all")
    assert " to layer3" not in whole + path.read_text()
    assert "layer3.4 " in whole
    assert ">layer3.4</text>" in path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draw", "plan.pdf"], "cannot draw to plan.pdf: end it in one of .svg, .png, .html"),
        (["--draw", "no/such/plan.svg"], "cannot write no/such/plan.svg: there is no folder"),
        (["--cost", "macs"], "--cost is for a drawing: name its file with --draw"),
        (["--input", "3x8x8"], "--input is for a drawing: name its file with --draw"),
        (["--draw", "plan.svg", "--input", "3xtwo"], "'3xtwo' is no shape"),
    ],
)
def test_mistakes_are_told_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    def load(name: str) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(plan_command, "load_model", load)
    status, out, err = run(capsys, *RESNET, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_costs_of_the_words_are_those_of_the_drawing() -> None:
    assert tuple(COSTS) == parser.COSTS


# The page that shows drawings

COMMANDS = re.findall(r"^attn-surgery (.+) --draw (docs/pictures/\S+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("words", "picture"), COMMANDS)
def test_the_drawings_shown_are_those_of_their_commands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, picture: str
) -> None:
    path = tmp_path / "plan.svg"
    assert run(capsys, *words.split(), "--draw", str(path))[0] == 0
    assert path.read_text() == (ROOT / picture).read_text()
    assert path.stat().st_size < 100_000


def test_every_drawing_is_shown() -> None:
    pictures = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert pictures == {picture for _, picture in COMMANDS}
    assert pictures == {f"docs/{link}" for link in re.findall(r"\]\(([^)]+)\)", PAGE)}


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(example, {})
    assert "9 of 16 blocks get attention" in (tmp_path / "plan.html").read_text()


# Progress


@pytest.mark.parametrize(
    ("words", "titles"),
    [
        ([*RESNET, "--draw", "plan.svg"], ["loading", "planning", "counting and drawing"]),
        (["report", RESNET[1], "--no-latency"], ["loading", "counting"]),
        (["list"], ["trying each attention"]),
    ],
)
def test_what_takes_long_is_told_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    titles: list[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.01)
    assert run(capsys, *words)[2] == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(words) == 0
    assert all(f"{title} ... " in terminal.getvalue() for title in titles)
