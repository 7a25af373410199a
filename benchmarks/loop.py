"""What the loop of ``attn-surgery finetune`` costs over a bare PyTorch loop, per step.

    python benchmarks/loop.py

Both train the same network on the same images, read by the same DataLoader, with timm's AdamW. The
bare loop is forward, loss, backward, step. The other one adds seeds for every image and step,
schedule, Accelerate, logs, the progress bar (where stderr is a terminal) and the wish to stop.
Everything is measured in one run, in turn, as the median of paired ratios, so that a busy machine
slows both sides.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
from rounds import at_least_two
from tabulate import tabulate
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attn_surgery.finetune.data.batches import Loading, Prepared
from attn_surgery.finetune.data.source import Source
from attn_surgery.finetune.data.splits import Splits
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.loop import train_stage
from attn_surgery.finetune.experiment.progress import Display
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.process.checkpoints import Progress
from attn_surgery.finetune.recipe import Data, Host, Recipe, Stage
from attn_surgery.finetune.small_resnet import SmallResNet
from attn_surgery.finetune.tasks.classification import Classification
from attn_surgery.finetune.training.parameter_groups import param_groups
from attn_surgery.finetune.training.stage import set_up, take_down
from attn_surgery.surgery.verbs import apply

STAGE = Stage(epochs=1, lr=1e-3)


class Unmeasured(Context):
    """Only steps are timed."""

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {"accuracy": 0.0}


class Unsaved(Run):
    """A run that saves nothing at an epoch's end."""

    def keep(self, name: str, model: nn.Module) -> None: ...

    def save(self, training: Any, progress: Progress) -> None: ...


def bare(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> float:
    """Time an epoch of a bare loop."""
    optimizer = create_optimizer_v2(param_groups(model, 1e-3), opt="adamw", lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for x, y in DataLoader(TensorDataset(images, labels), batch, shuffle=True, drop_last=True):
        loss_of(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def ours(
    model: nn.Module, images: Tensor, labels: Tensor, batch: int, accelerator: Any, folder: Path
) -> float:
    """Time an epoch of the loop."""
    source = Source(TensorDataset(images, labels), 10)
    split = Prepared(source, lambda image, label: (image, label))
    shape = images.shape
    splits = Splits(split, split, 10, (shape[1], shape[2], shape[3]), None, split)
    recipe = Recipe(Host("-"), Data(batch_size=batch), (STAGE,))
    task, loading = Classification(), Loading(batch)
    updates = len(split) // batch
    context = Unmeasured(recipe, task, splits, loading, accelerator)
    run = Unsaved(context, "control", 0, model)
    run.display = Display("loop", updates, 0, folder)
    run.saved_at = time.monotonic()
    training = set_up(
        model, STAGE, task, None, accelerator, classes=10, updates=updates, norm_batch=batch
    )
    start = time.perf_counter()
    train_stage(run, training, Progress())
    seconds = time.perf_counter() - start
    take_down(training, accelerator)
    run.close()
    return seconds


def cases() -> list[tuple[str, Any, tuple[int, int, int], int, int]]:
    """Return name, builder, shape of an image, batch size, steps in a round."""
    return [
        ("small_resnet + se, 28 x 28", lambda: apply(SmallResNet(), "se"), (1, 28, 28), 64, 12),
        ("resnet18 + cbam, 64 x 64", _resnet18, (3, 64, 64), 16, 4),
    ]


def _resnet18() -> nn.Module:
    return apply(timm.create_model("resnet18", num_classes=10), "cbam")


def measure(rounds: int, accelerator: Any, folder: Path) -> list[list[str]]:
    """Time both loops in turn."""
    rows = []
    for name, build, shape, batch, steps in cases():
        images = torch.randn(batch * steps, *shape)
        labels = torch.arange(batch * steps) % 10
        model, ratios, extra, own = build().train(), [], [], []
        for round_ in range(rounds + 1):
            # Who goes first changes, so that neither profits from what the other left in caches.
            first = round_ % 2
            times = {}
            for which in (first, 1 - first):
                if which:
                    times[1] = ours(model, images, labels, batch, accelerator, folder)
                else:
                    times[0] = bare(model, images, labels, batch)
            if round_:  # one round of warm-up
                ratios.append(times[1] / times[0])
                extra.append((times[1] - times[0]) / steps * 1e6)
                own.append(times[0] / steps * 1e3)
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            [
                name,
                str(batch),
                f"{statistics.median(own):.1f}",
                f"{statistics.median(extra):.0f}",
                f"{median:.3f} ({low:.3f} to {high:.3f})",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the loop costs.")
    parser.add_argument("--rounds", type=at_least_two, default=30)
    rounds = parser.parse_args().rounds
    accelerator = accelerate.Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(rounds, accelerator, Path(folder))
    print(
        f"CPU {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"timm {timm.__version__}, accelerate {accelerate.__version__}, float32, "
        f"{time.strftime('%Y-%m-%d')}, {rounds} rounds\n"
    )
    heads = ["model", "batch", "bare step (ms)", "added (us)", "paired ratio (quartiles)"]
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
