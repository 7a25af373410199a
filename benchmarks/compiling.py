"""What compiling the inserted attentions takes, from an empty cache and from a warm one.

    python benchmarks/compiling.py

ResNet-50 with attention at its 16 sites runs forward, then forward and backward, in a process of
its own: once with an empty cache of the compiler, once more with what the first left there. What is
printed is the time of the first call beyond that of the second, in which nothing is compiled.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
import torchvision
from rounds import seconds
from tabulate import tabulate

import attn_surgery


def first_calls(attention: str, cache: str, telling: Connection) -> None:
    """Tell what is compiled in: seconds of inference, seconds of training, number of graphs."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    model = torchvision.models.resnet50().eval()
    attn_surgery.compile_attention(attn_surgery.apply(model, attention))
    x = torch.randn(2, 3, 224, 224)

    def inference() -> None:
        with torch.no_grad():
            model(x)

    def training() -> None:
        model(x).sum().backward()

    found = [_beyond(inference)]
    model.train()
    found.append(_beyond(training))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    telling.send((*found, graphs))


def _beyond(call: Callable[[], None]) -> float:
    """Return what a first call takes beyond a second."""
    first = seconds(call)
    return first - seconds(call)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Measure what compiling attention takes.")
    parser.add_argument("--attention", nargs="+", default=["se", "cbam"])
    words = parser.parse_args()
    processes, rows = multiprocessing.get_context("spawn"), []
    for attention in words.attention:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "warm"):
                told, telling = processes.Pipe(duplex=False)
                process = processes.Process(target=first_calls, args=(attention, cache, telling))
                process.start()
                inference, training, graphs = told.recv()
                process.join()
                rows.append((attention, state, f"{inference:.1f}", f"{training:.1f}", graphs))
    print(
        f"CPU {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, float32, {time.strftime('%Y-%m-%d')}: ResNet-50, "
        "16 sites\n"
    )
    heads = ["attention", "cache", "inference (s)", "training (s)", "graphs"]
    print(tabulate(rows, heads, "pipe"))


if __name__ == "__main__":
    main()
