"""What ``plan`` takes, against another commit: timm's and torchvision's models, in turn.

    python benchmarks/plan.py --against HEAD~1
    python benchmarks/plan.py --against v0.1 --every 10 --rounds 3

Two processes, one with the package of each commit, plan the same model on the meta device in turn;
a model's ratio is the median of the ratios of processor time, round by round. The last line gives
the geometric mean over the models, with median and quartiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


def work() -> None:
    """Read names of models, plan each, and print the seconds; an empty line is the last model."""
    import attn_surgery

    model = None
    for line in sys.stdin:
        if name := line.strip():
            model = build(name)
        assert model is not None
        start = time.process_time()
        attn_surgery.plan(model, "se", existing="stack")
        print(time.process_time() - start, flush=True)


def build(name: str) -> nn.Module:
    """Build a model of the zoo on the meta device, with nothing of the package that is measured."""
    library, _, arch = name.partition("/")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return make(arch)
        except Exception:
            # some constructors read numbers, which the meta device does not have
            return make(arch).to("meta")


class Worker:
    """A process that plans models with the package of one checkout."""

    def __init__(self, checkout: Path):
        command = [sys.executable, str(Path(__file__).resolve()), "--work"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def plan(self, name: str = "") -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def compare(other: Path, every: int, rounds: int) -> None:
    sys.path.append(str(ROOT))
    from tests import zoo

    workers = (Worker(other), Worker(ROOT))
    ratios = []
    for name in sorted(zoo.names())[::every]:
        for worker in workers:
            worker.plan(name)
        times = [[worker.plan() for worker in workers] for _ in range(rounds)]
        before, now = (statistics.median(each) for each in zip(*times, strict=True))
        ratios.append(statistics.median(now / before for before, now in times))
        print(f"{name:44} {before:7.3f} s {now:7.3f} s {ratios[-1]:5.2f}", flush=True)
    low, median, high = statistics.quantiles(ratios, n=4)
    mean = statistics.geometric_mean(ratios)
    print(f"\n{len(ratios)} models: {mean:.3f} (median {median:.3f}, {low:.3f} to {high:.3f})")
    print(f"Python {platform.python_version()}, {platform.machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", default="HEAD~1", help="a commit (default: %(default)s)")
    parser.add_argument("--every", type=int, default=40, help="every so many models of the zoo")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", given.against, "attn_surgery"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        compare(Path(folder), given.every, given.rounds)


if __name__ == "__main__":
    main()
