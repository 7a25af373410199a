"""What a step of training takes on the features of a frozen host, beside one on its images.

    python benchmarks/prefix.py
    python benchmarks/prefix.py --model timm/resnet50 --size 224 --batch-size 32 --rounds 10

What trains is the head alone, then head and SE at the last sites of the host, at half of them and
at all. Steps on images and on features are taken in turn; medians, quartiles of the paired ratio.
"""

from __future__ import annotations

import argparse
import platform
import statistics

import torch
from rounds import at_least_two, seconds
from tabulate import tabulate
from torch import Tensor, nn

import attn_surgery
from attn_surgery.finetune.recipe import Stage
from attn_surgery.finetune.training import (
    Prefix,
    choose_trained,
    find_prefix,
    keep_statistics,
    make_optimizer,
)
from attn_surgery.host.load import load_model

HEADS = ["trains", "sites", "images, ms", "features, ms", "features to images", "kB an image"]


def trained(name: str, last: int | None, batch: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a host set up to train its head, and attention at so many last sites, or at none."""
    torch.manual_seed(0)
    model = load_model(name, device=None)
    if last is not None:
        blocks = [site.block for site in attn_surgery.plan(model, "se", existing="stack").sites]
        attn_surgery.apply(model, "se", where=blocks[-last:], existing="stack")
    stage = Stage(trains=("head",) if last is None else ("head", "attention"))
    choose_trained(model.train(), stage)
    keep_statistics(model, stage, batch)
    return model, make_optimizer(model, stage)


def measured(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, prefix: Prefix, rounds: int
) -> list[tuple[float, float]]:
    """Return the seconds of a step on images and of one on features, by round."""
    features = prefix.features(model, images)

    def step(given: Tensor) -> None:
        model(given).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def spared() -> None:
        with prefix.given(model):
            step(features)

    times = [(seconds(lambda: step(images)), seconds(spared)) for _ in range(rounds + 2)]
    return times[2:]


def row(name: str, last: int | None, images: Tensor, rounds: int) -> list[str]:
    """Measure one way of training."""
    model, optimizer = trained(name, last, len(images))
    sites = len(attn_surgery.inserted(model))
    told = ["head" if last is None else "head, SE", str(sites)]
    prefix = find_prefix(model, images[:2])
    if prefix is None:
        return [*told, "", "", "nothing is spared", ""]
    times = measured(model, optimizer, images, prefix, rounds)
    whole, spared = (1000 * statistics.median(each) for each in zip(*times, strict=True))
    first, middle, third = statistics.quantiles([b / a for a, b in times], n=4)
    ratio = f"{middle:.3f} ({first:.3f} to {third:.3f})"
    return [*told, f"{whole:.1f}", f"{spared:.1f}", ratio, f"{prefix.values * 4 / 1000:.0f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what features spare.")
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=at_least_two, default=20)
    options = parser.parse_args()
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    sites = len(attn_surgery.plan(load_model(options.model, device=None), "se").sites)
    lasts = [None, *dict.fromkeys((1, 3, sites // 2, sites))]
    rows = [row(options.model, last, images, options.rounds) for last in lasts]
    print(f"{options.model}, {tuple(images.shape)}, {platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(tabulate(rows, HEADS, disable_numparse=True))


if __name__ == "__main__":
    main()
