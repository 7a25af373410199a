"""A recipe that takes seconds, and a process of its own to run it in and to kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from attn_surgery.cli import main
from attn_surgery.finetune.recipe import Recipe
from attn_surgery.finetune.recipe.reading import parse_recipe

DRIVER = str(Path(__file__))

TINY: dict[str, Any] = {
    "host": {"model": "attn_surgery.finetune.small_resnet:small_resnet", "options": {"width": 4}},
    "surgery": {"attention": ["cbam"]},
    "data": {
        "name": "digits",
        "channels": 1,
        "image_size": 8,
        "batch_size": 32,
        "limit": 192,
        "val_limit": 96,
        "train_transform": {"scale": [0.8, 1.0], "hflip": 0.0},
        "val_transform": {"crop_pct": 1.0},
    },
    "pretraining": [{"epochs": 2, "lr": 0.01}],
    "stages": [
        {"trains": ["attention"], "epochs": 1, "lr": 0.01},
        {"epochs": 1, "lr": 0.003, "mixup": 0.2, "ema": 0.9, "clip_grad": 1.0, "accumulate": 2},
    ],
    "seeds": 1,
    "device": "cpu",
    "threads": 1,
    "log_every": 1,
    "checkpoint_seconds": 0,
    "report_seconds": 0,
}


def tiny(output: Path, **changes: Any) -> Recipe:
    """Return the recipe, with other tables in place of some."""
    return parse_recipe({**TINY, "output": str(output), **changes})


def within(name: str, **changes: Any) -> dict[str, Any]:
    """Return one of the recipe's tables with other values."""
    return {**TINY[name], **changes}


def weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return all weights below a folder."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): load_file(path) for path in paths}


def environment() -> dict[str, str]:
    """Return what a process of one's own should see."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "ACCELERATE_USE_CPU": "true"}


def launched(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run this file's commands in a process, perhaps by torchrun."""
    return subprocess.run(
        [sys.executable, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def as_toml(value: Any) -> str:
    """Write a value as TOML does."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {as_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value)


def write_recipe(path: Path, table: dict[str, Any]) -> str:
    """Write a recipe's file, and return its name."""
    path.write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in table.items()))
    return str(path)


# In a process of its own


def command(words: list[str]) -> int:
    """Do what the command line does."""
    return main(words)


def killed(words: list[str], number: int, delays: list[float], output: Path) -> list[int]:
    """Run a command again and again, each time with a signal some seconds after it first wrote.

    Returns:
        How each ended; the last without a signal.
    """
    import attn_surgery.finetune.running  # noqa: F401  # so that the children need not

    ended = []
    for delay in [*delays, None]:
        began = time.time()
        if not (child := os.fork()):
            os._exit(_quietly(words))
        if delay is not None:
            _wait_for_files(output, began)
            time.sleep(delay)
            os.kill(child, number)
        _, status = os.waitpid(child, 0)
        ended.append(os.waitstatus_to_exitcode(status))
    return ended


def _wait_for_files(folder: Path, began: float, patience: float = 120.0) -> None:
    while time.time() < began + patience:
        if any(path.stat().st_mtime >= began for path in folder.glob("*.json")):
            return
        time.sleep(0.01)


def _quietly(words: list[str]) -> int:
    try:
        return command(words)
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "command":
        sys.exit(command(rest))
    if what in {"KILL", "TERM"}:
        seed, times, output, *rest = rest
        chance = random.Random(int(seed))
        spread = [chance.uniform(0.0, 1.0) for _ in range(int(times))]
        words = [*rest, "--output", output]
        print(killed(words, getattr(signal, f"SIG{what}"), spread, Path(output)))
