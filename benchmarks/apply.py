"""What ``apply`` costs: against one forward pass, with the number of blocks, and in memory.

    python benchmarks/apply.py

Everything is measured in one run. Times are compared in turn, as medians of paired ratios, so that
a busy machine slows both sides.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
import torchvision
from rounds import at_least_two, seconds
from tabulate import tabulate
from torch import nn
from torch.profiler import ProfilerActivity, profile

import attn_surgery

BLOCKS = (16, 50, 160, 500, 1600)


def against_forward(rounds: int) -> list[list[object]]:
    """Time ``apply`` on a new ResNet-50 and one forward pass of it at batch 1, in turn."""
    x = torch.randn(1, 3, 224, 224)
    rows = []
    for attention in ("se", "cbam"):
        ratios, applies, forwards = [], [], []
        for round_ in range(rounds + 2):
            host = torchvision.models.resnet50().eval()
            with torch.no_grad():
                host(x)
                forward = seconds(lambda host=host: host(x))
            apply = seconds(lambda host=host, name=attention: attn_surgery.apply(host, name))
            if round_ >= 2:  # two rounds of warm-up
                ratios.append(apply / forward)
                applies.append(apply * 1e3)
                forwards.append(forward * 1e3)
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            [
                attention,
                f"{statistics.median(applies):.0f}",
                f"{statistics.median(forwards):.0f}",
                f"{median:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
    return rows


def with_blocks(rounds: int) -> list[list[object]]:
    """Time ``apply`` on stacks of bottlenecks on the meta device."""
    block = torchvision.models.resnet.Bottleneck
    rows = []
    for count in BLOCKS:
        times = []
        for _ in range(rounds):
            with torch.device("meta"):
                host = nn.Sequential(*[block(64, 16) for _ in range(count)])
            times.append(seconds(lambda host=host: attn_surgery.apply(host, "se")))
        rows.append([count, f"{min(times) * 1e3:.0f}", f"{min(times) / count * 1e3:.2f}"])
    return rows


def in_memory() -> list[list[object]]:
    """Count the bytes that ``apply`` allocates against those of the host and of the attention."""
    rows = []
    for attention in ("se", "cbam"):
        host = torchvision.models.resnet152()
        held = size_of(host)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            attn_surgery.apply(host, attention)
        events = profiled.events() or []
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in events)
        rows.append([attention, mib(held), mib(size_of(host) - held), mib(allocated)])
    return rows


def size_of(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def mib(size: int) -> str:
    return f"{size / 2**20:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what apply costs.")
    parser.add_argument("--rounds", type=at_least_two, default=15)
    parser.add_argument("--threads", type=int, help="CPU threads")
    words = parser.parse_args()
    rounds = words.rounds
    if words.threads:
        torch.set_num_threads(words.threads)
    print(
        f"CPU {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, float32, {time.strftime('%Y-%m-%d')}, "
        f"{rounds} rounds\n"
    )
    heads = ["attention", "apply (ms)", "forward, batch 1 (ms)", "paired ratio (quartiles)"]
    print("ResNet-50\n" + tabulate(against_forward(rounds), heads) + "\n")
    print(
        "Stacked bottlenecks, SE\n"
        + tabulate(with_blocks(3), ["blocks", "apply (ms)", "per block (ms)"])
        + "\n"
    )
    heads = ["attention", "host (MiB)", "attention (MiB)", "allocated by apply (MiB)"]
    print("ResNet-152\n" + tabulate(in_memory(), heads))


if __name__ == "__main__":
    main()
