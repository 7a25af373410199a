"""What it takes to go from one attention file to another on one host, beside a fresh ``load``.

    python benchmarks/switch.py
    python benchmarks/switch.py --model timm/resnet50 --rounds 50

Two files of each kind, their numbers drawn, are switched to in turn, then again with a forward pass
of one image after each, then loaded into a fresh host; milliseconds of wall-clock, median and
quartiles.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from rounds import at_least_two, seconds
from tabulate import tabulate
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host.inputs import guess_input
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


def measured(model: nn.Module, files: list[Path], rounds: int, image: Tensor) -> list[list[float]]:
    """Return the seconds per switch, per switch after a forward pass, and per load."""
    serving, fresh = attn_surgery.load(copy.deepcopy(model), files[0]), copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    alone, serving_s, loads = [], [], []
    for number in range(rounds + 2):
        path = files[(number + 1) % 2]
        alone.append(seconds(lambda path=path: attn_surgery.switch(serving, path)))
    for number in range(rounds):
        with torch.no_grad():
            serving(image)
        path = files[(number + 1) % 2]
        serving_s.append(seconds(lambda path=path: attn_surgery.switch(serving, path)))
    for number in range(rounds):
        path = files[number % 2]
        loads.append(seconds(lambda path=path: attn_surgery.load(fresh, path)))
        attn_surgery.remove(fresh).load_state_dict(state)
    return [alone[2:], serving_s, loads]


def spread(times: list[float]) -> str:
    first, middle, last = (1000 * each for each in statistics.quantiles(times, n=4))
    return f"{middle:.1f} ({first:.1f} to {last:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what switching takes.")
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--attention", nargs="+", default=["se", "cbam"])
    parser.add_argument("--rounds", type=at_least_two, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_model(options.model, device=None).eval()
    (image,), _ = guess_input(model).build(device=torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for attention in options.attention:
            for kind, host in KINDS.items():
                paths = [Path(folder, f"{attention} {host} {number}") for number in range(2)]
                files = [written(model, attention, host, path) for path in paths]
                times = measured(model, files, options.rounds, image)
                size = files[0].stat().st_size / 1000
                rows.append([attention, kind, f"{size:.0f}", *map(spread, times)])
    print(f"{options.model}, {platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\n")
    print(
        tabulate(rows, ["attention", "file", "kB", "switch, ms", "after a forward, ms", "load, ms"])
    )


if __name__ == "__main__":
    main()
