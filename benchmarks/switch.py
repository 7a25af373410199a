"""What it takes to go from one attention file to another on one host, beside a fresh ``load``.

    python benchmarks/switch.py
    python benchmarks/switch.py --model timm/resnet50 --rounds 50

Two files of each kind, their numbers drawn, are switched to and loaded in turn; milliseconds of
wall-clock, median and quartiles over the rounds. Before a load, the host is given back as it was.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

import attn_surgery
from attn_surgery.host.load import load_model

KINDS = {"attention": None, "attention and norms": "norms", "attention and head": "head"}


def written(model: nn.Module, attention: str, host: str | None, path: Path) -> Path:
    """Write an attention of drawn numbers and, of the host, what the file is to hold."""
    model = attn_surgery.apply(copy.deepcopy(model), attention)
    with torch.no_grad():
        for each in attn_surgery.inserted(model).values():
            for parameter in each.parameters():
                parameter.add_(torch.randn_like(parameter))
    attn_surgery.save(model, path, host=host)
    return path


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(model: nn.Module, files: list[Path], rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds per switch, after the first two, and per load."""
    serving, fresh = attn_surgery.load(copy.deepcopy(model), files[0]), copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    switches, loads = [], []
    for number in range(rounds + 2):
        path = files[(number + 1) % 2]
        switches.append(seconds(lambda path=path: attn_surgery.switch(serving, path)))
        loads.append(seconds(lambda path=path: attn_surgery.load(fresh, path)))
        attn_surgery.remove(fresh).load_state_dict(state)
    return switches[2:], loads


def spread(times: list[float]) -> str:
    first, middle, last = (1000 * each for each in statistics.quantiles(times, n=4))
    return f"{middle:.1f} ({first:.1f} to {last:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--attention", nargs="+", default=["se", "cbam"])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_model(options.model, device=None).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for attention in options.attention:
            for kind, host in KINDS.items():
                paths = [Path(folder, f"{attention} {host} {number}") for number in range(2)]
                files = [written(model, attention, host, path) for path in paths]
                times = measured(model, files, options.rounds)
                size = files[0].stat().st_size / 1000
                rows.append([attention, kind, f"{size:.0f}", *map(spread, times)])
    print(f"{options.model}, {platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\n")
    print(tabulate(rows, ["attention", "file", "kB", "switch, ms", "load, ms"]))


if __name__ == "__main__":
    main()
