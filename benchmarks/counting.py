"""What counting takes: a whole report without latency, on the meta device, one thread.

    python benchmarks/counting.py

Every column but latency, activation memory included, for the host and each attention. The process
is warmed up with one report of ResNet-18. The convnets are the largest of timm by parameters and
others that are large, deep or fed with large images; attention is stacked where there is some.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import timm
import torch
from tabulate import tabulate

import attn_surgery
from attn_surgery.host.load import load_model

LARGE = (
    "regnety_2560",
    "resnetv2_152x4_bit",
    "convnext_xxlarge",
    "nfnet_f7",
    "tf_efficientnet_l2",
    "resnetrs420",
    "tresnet_xl",
)


def seconds(name: str, attentions: tuple[str, ...], runs: int) -> list[object]:
    model = load_model(name)
    times, reports = [], []
    for _ in range(runs):
        start = time.perf_counter()
        reports.append(attn_surgery.report(model, attentions, existing="stack", latency=False))
        times.append(time.perf_counter() - start)
    rows = reports[-1].rows
    assert not any(row.macs is None for row in rows)
    params = (rows[0].params or 0) / 1e6
    return [
        name,
        ", ".join(attentions),
        f"{params:.0f}",
        rows[-1].sites,
        f"{statistics.median(times):.2f}",
        f"{max(times):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what counting takes.")
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    print(
        f"CPU {platform.machine()}, 1 thread, torch {torch.__version__}, timm {timm.__version__}, "
        f"{time.strftime('%Y-%m-%d')}, {runs} runs\n"
    )
    seconds("torchvision/resnet18", ("se",), 1)
    rows = [seconds("torchvision/resnet50", ("se", "cbam", "sam"), runs)]
    rows += [seconds(f"timm/{name}", ("se", "cbam", "sam"), runs) for name in LARGE]
    heads = ["model", "attentions", "params (M)", "sites", "median (s)", "worst (s)"]
    print(tabulate(rows, heads))


if __name__ == "__main__":
    main()
