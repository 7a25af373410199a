"""Whole models: what attention adds when it was put in, and when the network was built with it.

    python benchmarks/models.py --threads 1 --seconds 60

The host, the host with this package's attention in it, the same with that attention compiled, and
the host built with timm's (its module behind the one that the attention follows, as one edits a
model's source) are timed in turn within one run. What is printed are medians over the rounds, with
their 95 % intervals: what ours adds as a part of what the other adds, and the whole as a part of
the whole. `--compile` compiles the whole models instead.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from tabulate import tabulate
from timm.layers.cbam import CbamModule
from timm.layers.squeeze_excite import SEModule
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from in_turn import timed_in_turn

import attn_surgery
from attn_surgery.host import Input
from attn_surgery.reporting import accelerator, device_name
from attn_surgery.reporting.measuring import Conditions, Timing
from attn_surgery.reporting.measuring.statistics import median_interval

MODELS = ("timm/resnet50", "timm/resnet18", "torchvision/mobilenet_v2", "timm/convnext_tiny")
ZOOS = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}
THEIRS = {"se": partial(SEModule, rd_divisor=1), "cbam": partial(CbamModule, rd_divisor=1)}
HOST, OURS, COMPILED, NATIVE = "host", "ours", "ours, compiled", "native"


@dataclass(frozen=True)
class Estimate:
    """A median over the rounds, and its interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        return cls(statistics.median(values), *median_interval(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Case:
    """What is timed together."""

    model: str
    attention: str
    batch: int
    train: bool

    @property
    def kind(self) -> str:
        return "training" if self.train else "inference"


@dataclass(frozen=True)
class Measured:
    """The times of a case, by who is timed."""

    case: Case
    timings: dict[str, Timing]

    def whole(self, name: str) -> Estimate:
        """Return the time of one as a part of the native one's."""
        return Estimate.of([a / b for a, b in zip(self._ms(name), self._ms(NATIVE), strict=True)])

    def added(self, name: str) -> Estimate:
        """Return what one adds as a part of what the native one adds.

        The rounds' own differences can be near nothing: each is divided by their median.
        """
        host = self._ms(HOST)
        native = statistics.median(a - b for a, b in zip(self._ms(NATIVE), host, strict=True))
        return Estimate.of([(a - b) / native for a, b in zip(self._ms(name), host, strict=True)])

    def _ms(self, name: str) -> tuple[float, ...]:
        return self.timings[name].samples_ms


def built_with(model: nn.Module, attention: str) -> nn.Module:
    """Put timm's attention where ours would go, as an edited source would.

    That is behind a module; where ours follows a function, before the block's drop path.
    """
    for site in attn_surgery.plan(model, attention, existing="stack").sites:
        block = model.get_submodule(site.block)
        theirs = THEIRS[attention](site.channels)
        follows = site.after in dict(block.named_modules())
        name = site.after if follows else "drop_path"
        module = block.get_submodule(name)
        pair = (module, theirs) if follows else (theirs, module)
        block.set_submodule(name, nn.Sequential(*pair))
    return model


def timed(case: Case, device: torch.device, words: argparse.Namespace) -> Measured:
    """Time the host, ours, ours compiled, and the native one."""
    torch.compiler.reset()  # what earlier cases compiled counts against a limit

    def host() -> nn.Module:
        torch.manual_seed(0)
        zoo, name = case.model.split("/")
        return ZOOS[zoo](name).to(device)

    def ours(*, compiled: bool = False) -> nn.Module:
        model = attn_surgery.apply(host(), case.attention, existing="stack")
        return attn_surgery.compile_attention(model) if compiled else model

    builders: dict[str, Callable[[], nn.Module]] = {
        HOST: host,
        OURS: ours,
        COMPILED: partial(ours, compiled=True),
        NATIVE: lambda: built_with(host(), case.attention).to(device),
    }
    if words.compile:
        del builders[COMPILED]
    conditions = Conditions(
        device,
        batch_size=case.batch,
        compile=words.compile,
        threads=words.threads,
        seconds=words.seconds,
    )
    given = Input(((3, words.size, words.size),))
    times = timed_in_turn(str(case), builders, given, conditions, train=case.train)
    return Measured(case, times)


def table(done: Sequence[Measured]) -> str:
    """Return every case."""
    rows = []
    for each in done:
        case, host = each.case, each.timings[HOST]
        row = {
            "model": case.model,
            "attention": case.attention,
            "what": case.kind,
            "batch": case.batch,
            "host (ms)": f"{host.median_ms:.2f}",
            "native adds (ms)": f"{each.timings[NATIVE].added_ms:.2f}",
            "ours adds / native adds": each.added(OURS),
            "ours / native": each.whole(OURS),
        }
        if COMPILED in each.timings:
            row["compiled adds / native adds"] = each.added(COMPILED)
        rows.append(row)
    return tabulate(rows, "keys", "pipe", disable_numparse=True)


def means(done: Sequence[Measured]) -> str:
    """Return the geometric means over the models."""
    rows = []
    groups = sorted({(each.case.attention, each.case.kind, each.case.batch) for each in done})
    for group in groups:
        several = [
            each for each in done if (each.case.attention, each.case.kind, each.case.batch) == group
        ]
        wholes = [each.whole(OURS).median for each in several]
        added = statistics.median(each.added(OURS).median for each in several)
        mean = math.exp(statistics.fmean(map(math.log, wholes)))
        rows.append((*group, len(several), f"{added:.2f}", f"{mean:.3f}"))
    heads = [
        *("attention", "what", "batch", "models", "ours adds / native adds, median"),
        "ours / native, geometric mean",
    ]
    return tabulate(rows, heads, "pipe", disable_numparse=True)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Time whole models with attention in them.")
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="ZOO/NAME")
    parser.add_argument("--attention", nargs="+", choices=list(THEIRS), default=list(THEIRS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=224, help="of the images (default: 224)")
    parser.add_argument("--inference", action="store_true", help="no training steps")
    parser.add_argument("--compile", action="store_true", help="compile the whole models")
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=30.0, help="for a case (default: 30)")
    words = parser.parse_args()
    device = torch.device(words.device or accelerator() or "cpu")
    kinds = (False,) if words.inference else (False, True)
    asked = itertools.product(words.model, words.attention, words.batch, kinds)
    done = []
    for each in itertools.starmap(Case, asked):
        try:
            done.append(timed(each, device, words))
        except RuntimeError as error:
            print(error, file=sys.stderr)
    threads = words.threads or torch.get_num_threads()
    print(
        f"{device_name(device)} ({platform.machine()}), {threads} threads, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; {words.seconds:g} s a case"
        f"{', the whole models compiled' if words.compile else ''}\n"
    )
    print(f"{means(done)}\n\n{table(done)}")


if __name__ == "__main__":
    main()
