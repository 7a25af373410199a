"""Where operated models can go: hosts x uses x attentions, as a page.

    python benchmarks/matrix.py --seconds 3600      # goes on where it stopped
    python benchmarks/matrix.py --page              # the page alone, of what was tried

Each use of each host is a process of its own (the two that share an ONNX file are one): first the
host alone, then the host with each attention in it. A cell says that it works, that the host alone
cannot, or what fails. What was tried stands in `docs/compatibility.json`, and is tried again only
with `--again`.

It needs onnx, onnxscript, onnxruntime, torchao, peft and opacus besides what the tests need.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compatibility.cells import ALONE, HOST_CANNOT, Cells, tried
from compatibility.exporting import EXPORTING
from compatibility.hosts import HOSTS
from compatibility.page import page
from compatibility.quantizing import QUANTIZING
from compatibility.training import TRAINING

import attn_surgery
from attn_surgery.attention.construction import build, entry
from attn_surgery.errors import SurgeryError

ROOT = Path(__file__).parents[1]
USES = {**EXPORTING, **QUANTIZING, **TRAINING}
TOGETHER = {"onnx": ("onnx", "tensorrt")}
"""Uses that are tried in one process, as they share what takes most of the time."""
ATTENTIONS = ("se", "cbam", "eca", "coord")
ALL_IN = "timm/resnet18"
"""The host in which every attention is tried."""
PACKAGES = (
    *"torch torchvision timm transformers onnx onnxscript onnxruntime torchao peft opacus".split(),
)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([*"torch torchvision timm transformers attn_surgery".split()])
"""Each begins with these imported, which would take it as long as what it is for."""
RESULTS, PAGE = ROOT / "docs/compatibility.json", ROOT / "docs/compatibility.md"


def attentions_of(host: str) -> list[str]:
    """Return the attentions that are tried in a host: those that take maps of so many dims."""
    dims = len(HOSTS[host].shape) - 1
    if host == ALL_IN:
        return [each for each in attn_surgery.available() if each not in broken()]
    return [each for each in ATTENTIONS if dims in (entry(each).dims or (dims,))]


@functools.cache
def broken() -> list[str]:
    """Return the attentions that the installed timm cannot build."""
    found = []
    for name in attn_surgery.available():
        try:
            build(name, 64)
        except SurgeryError:
            found.append(name)
    return found


def run(host: str, uses: Sequence[str], timeout: float) -> dict[str, dict[str, str]]:
    """Try uses in a process of their own; return the outcome of each use with each attention."""
    told, telling = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=tell, args=(host, uses, telling))
    process.start()
    telling.close()
    found: dict[str, dict[str, str]] = {}
    until, why = time.monotonic() + timeout, f"not finished within {timeout:g} s"
    try:
        while told.poll(max(0.0, until - time.monotonic())):
            use, attention, outcome = told.recv()
            found.setdefault(use, {})[attention] = outcome
    except EOFError:  # it has ended
        process.join()
        why = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    attentions = attentions_of(host)
    return {use: _of_use(found.get(use, {}), attentions, why) for use in uses}


def tell(host: str, uses: Sequence[str], telling: Connection) -> None:
    """Try uses, and tell each outcome; what is printed meanwhile is nobody's."""
    with open(os.devnull, "w") as nobody:  # noqa: PTH123
        os.dup2(nobody.fileno(), 1)
        os.dup2(nobody.fileno(), 2)
    for outcome in tried(HOSTS[host], {use: USES[use] for use in uses}, attentions_of(host)):
        telling.send(outcome)


def _of_use(found: dict[str, str], attentions: list[str], why: str) -> dict[str, str]:
    alone = found.pop(ALONE, why)
    if alone:
        return dict.fromkeys(attentions, f"{HOST_CANNOT}{alone}")
    return {each: found.get(each, why) for each in attentions}


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
    words = parser.parse_args()
    cells = Cells.read(RESULTS)
    start = time.monotonic()
    wanted = [(host, use) for host in words.host for use in words.use]
    for host, use in [] if words.page else wanted:
        if time.monotonic() - start > words.seconds:
            break
        if not words.again and cells.has(host, use):
            continue
        for each, found in run(host, TOGETHER.get(use, (use,)), words.timeout).items():
            cells.put(host, each, found, versions())
            print(host, each, cells.summary(host, each), flush=True)
        cells.write(RESULTS)
    descriptions: dict[str, Any] = {name: use.__doc__ or "" for name, use in USES.items()}
    PAGE.write_text(
        page(cells.sorted, descriptions, ALL_IN, len(HOSTS), broken()), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
