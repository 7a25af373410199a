"""The command that is run on accelerators runs here, too, in a tiny form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results")
    words = ["--device", "cpu", "--tiny", "--seconds", "400", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "benchmarks/accelerator.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.mark.slow
def test_every_part_ends_and_every_check_holds(output: Path) -> None:
    (path,) = output.glob("*.json")
    parts = json.loads(path.read_text())["parts"]
    assert list(parts) == ["latency", "surgery", "tests", "recipes", "attention"]
    for part in parts.values():
        assert part["ended"], parts
        assert part["error"] == ""
        assert all(row["ok"] for row in part["rows"])
    surgery = parts["surgery"]["rows"]
    assert {row["attention"] for row in surgery} == {"se", "cbam"}
    assert all(row["identical in training"] and row["removed"] for row in surgery)
    assert "ours / timm" in parts["attention"]["rows"][0]["table"]
    assert [row["same_weights"] for row in parts["recipes"]["rows"] if "same_weights" in row] == [
        True
    ]


@pytest.mark.slow
def test_people_can_read_it(output: Path) -> None:
    (path,) = output.glob("*.md")
    text = path.read_text()
    assert "## surgery" in text
    assert "wall clock latency (median ms)" in text


def test_a_part_that_does_not_end_keeps_what_it_did(tmp_path: Path) -> None:
    """Each has its time, and what it has no time for is said."""
    words = [
        "--device",
        "cpu",
        "--tiny",
        "--seconds",
        "3.5",
        "--output",
        str(tmp_path / "rows.json"),
    ]
    command = [sys.executable, "-m", "benchmarks.on_accelerator.surgery", *words]
    subprocess.run(command, cwd=ROOT, check=True)
    told = json.loads((tmp_path / "rows.json").read_text())
    assert told["ended"]
    assert told["missed"]
