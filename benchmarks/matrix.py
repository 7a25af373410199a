"""Where operated models can go: hosts x uses x attentions, as a page.

    python benchmarks/matrix.py --seconds 3600      # goes on where it stopped
    python benchmarks/matrix.py --page              # the page alone, of what was tried

Each use of each host is a process of its own: first the host alone, then the host with each
attention in it. A cell says that it works, that the host alone cannot, or what fails. What was
tried stands in `docs/compatibility.json`, and is tried again only with `--again`.

It needs onnx, onnxscript, onnxruntime, torchao, peft and opacus besides what the tests need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compatibility.cells import ALONE, Cells, tried
from compatibility.exporting import EXPORTING
from compatibility.hosts import HOSTS
from compatibility.page import page
from compatibility.quantizing import QUANTIZING
from compatibility.training import TRAINING

import attn_surgery

ROOT = Path(__file__).parents[1]
USES = {**EXPORTING, **QUANTIZING, **TRAINING}
ATTENTIONS = ("se", "cbam", "eca", "coord")
ALL_IN = "timm/resnet18"
"""The host in which every attention is tried."""
PACKAGES = (
    *"torch torchvision timm transformers onnx onnxscript onnxruntime torchao peft opacus".split(),
)
RESULTS, PAGE = ROOT / "docs/compatibility.json", ROOT / "docs/compatibility.md"


def attentions_of(host: str) -> list[str]:
    """Return the attentions that are tried in a host."""
    return [*attn_surgery.available()] if host == ALL_IN else [*ATTENTIONS]


def run(host: str, use: str, timeout: float) -> dict[str, str]:
    """Try a use in a process of its own; return the outcome of each attention."""
    words = [sys.executable, "-W", "ignore", __file__, "--cell", host, use]
    attentions = attentions_of(host)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        found = told(said.decode() if isinstance(said, bytes) else said)
        why = f"not finished within {timeout:g} s"
    else:
        found = told(done.stdout)
        why = f"the process ended with {done.returncode}"
    alone = found.pop(ALONE, why)
    if alone:
        return dict.fromkeys(attentions, f"host: {alone}")
    return {each: found.get(each, why) for each in attentions}


def told(text: str) -> dict[str, str]:
    """Return what a cell's process printed: one outcome a line."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('["')]
    return dict(lines)


def versions() -> dict[str, str]:
    """Return those of the packages that take part."""
    return {each: metadata.version(each) for each in PACKAGES}


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Try where operated models can go.")
    parser.add_argument(
        "--host", nargs="+", choices=list(HOSTS), default=list(HOSTS), metavar="HOST"
    )
    parser.add_argument("--use", nargs="+", choices=list(USES), default=list(USES), metavar="USE")
    parser.add_argument("--again", action="store_true", help="try what was tried before, too")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin nothing after these"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="for one use of one host")
    parser.add_argument("--page", action="store_true", help="write the page and end")
    parser.add_argument("--cell", nargs=2, metavar=("HOST", "USE"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.cell:
        host, use = words.cell
        for name, outcome in tried(HOSTS[host], USES[use], attentions_of(host)):
            print(json.dumps([name, outcome]), flush=True)
        return
    cells = Cells.read(RESULTS)
    start = time.monotonic()
    wanted = [(host, use) for use in words.use for host in words.host]
    for host, use in [] if words.page else wanted:
        if time.monotonic() - start > words.seconds:
            break
        if words.again or not cells.has(host, use):
            cells.put(host, use, run(host, use, words.timeout), versions())
            cells.write(RESULTS)
            print(host, use, cells.summary(host, use), flush=True)
    descriptions: dict[str, Any] = {name: use.__doc__ or "" for name, use in USES.items()}
    PAGE.write_text(page(cells, descriptions, ALL_IN), encoding="utf-8")


if __name__ == "__main__":
    main()
