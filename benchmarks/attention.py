"""Attentions alone, at the maps of ResNet-50's and MobileNetV2's stages: ours, timm's, plain.

    python benchmarks/attention.py --threads 1 --seconds 600

All of one case are timed in turn within one run, on the same map, a copy of the map beside them.
What is printed are medians of paired ratios, with their 95 % intervals, and the geometric mean over
each group of cases. A training step goes forward, and backward to the map and to the weights, and
ends with SGD. On an accelerator the times are the device's own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from tabulate import tabulate
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from timm.layers.eca import EcaModule
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from in_turn import timed_in_turn

from attn_surgery.attention import build
from attn_surgery.host import Input
from attn_surgery.reporting import accelerator, device_name
from attn_surgery.reporting.measuring import Conditions, Timing

RESNET50 = ((256, 56), (512, 28), (1024, 14), (2048, 7))
MOBILENETV2 = ((24, 56), (32, 28), (96, 14), (160, 7))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PlainSE(nn.Module):
    """As a tutorial writes it."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels // 16 or 1),
            nn.ReLU(),
            nn.Linear(channels // 16 or 1, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))).sigmoid()
        return x * gate[:, :, None, None]


class PlainCBAM(nn.Module):
    """The two equations, one after the other."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = PlainSE(channels).mlp
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()
        x = x * gate[:, :, None, None]
        described = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * self.bn(self.conv(described)).sigmoid()


class PlainECA(nn.Module):
    """A convolution over neighbouring channels."""

    def __init__(self, channels: int):
        super().__init__()
        size = int(abs(math.log2(channels) + 1) / 2)
        self.conv = nn.Conv1d(1, 1, size | 1, padding=(size | 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return x * gate[:, :, None, None]


class PlainCoord(nn.Module):
    """Two pools, one along each side, through one layer."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 16)
        self.conv1, self.bn = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv_h, self.conv_w = (nn.Conv2d(hidden, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        hidden = nn.functional.hardswish(self.bn(self.conv1(torch.cat([rows, columns], 2))))
        rows, columns = hidden.split([x.shape[2], x.shape[3]], 2)
        return x * self.conv_h(rows).sigmoid() * self.conv_w(columns.transpose(2, 3)).sigmoid()


THEIRS = {
    "se": partial(SEModule, rd_divisor=1),
    "cbam": partial(CbamModule, rd_divisor=1),
    "eca": EcaModule,
    "coord": CoordAttn,
}
PLAIN = {"se": PlainSE, "cbam": PlainCBAM, "eca": PlainECA, "coord": PlainCoord}


class OnAMap(nn.Module):
    """An attention on a map that gets a gradient, as it does within a network."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.detach().requires_grad_() if torch.is_grad_enabled() else x)


class Copy(nn.Module):
    """What moves a map once: reads it and writes another."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.factor * x) if torch.is_grad_enabled() else x.clone()


@dataclass(frozen=True)
class Case:
    """What is timed together."""

    attention: str
    shape: tuple[int, int]
    batch: int
    dtype: str
    channels_last: bool
    train: bool

    @property
    def group(self) -> tuple[str, str]:
        """What the geometric means are taken over."""
        return self.attention, "training" if self.train else "inference"

    @property
    def title(self) -> str:
        """The map."""
        channels, size = self.shape
        layout = ", channels last" if self.channels_last else ""
        return f"{self.batch} x {channels} x {size} x {size}, {self.dtype}{layout}"


@dataclass(frozen=True)
class Measured:
    """The times of a case, by who is timed."""

    case: Case
    timings: dict[str, Timing]

    def ratio(self, one: str, other: str) -> float:
        """Return the median of the paired ratios."""
        pairs = zip(self.timings[one].samples_ms, self.timings[other].samples_ms, strict=True)
        return statistics.median(a / b for a, b in pairs)


def cases(words: argparse.Namespace) -> list[Case]:
    """Return the cases that are asked for, in an order in which any beginning is a fair sample."""
    shapes = [*RESNET50, *MOBILENETV2] if not words.quick else RESNET50[2:3]
    found = [
        Case(*each)
        for each in itertools.product(
            words.attention,
            shapes,
            words.batch,
            words.dtype,
            (False,) if words.quick else (False, True),
            (False, True),
        )
    ]
    random.Random(0).shuffle(found)
    return found


def timed(case: Case, device: torch.device, words: argparse.Namespace) -> Measured:
    """Time ours, timm's, the plain one and a copy, ours compiled, too, if asked for."""
    torch.compiler.reset()  # what earlier cases compiled counts against a limit
    channels, size = case.shape

    def on_a_map(make: Callable[[], nn.Module], *, compiled: bool = False) -> nn.Module:
        attention = make()
        if compiled:
            attention.compile(dynamic=False)
        return OnAMap(attention).to(device)

    ours = partial(build, case.attention, channels)
    theirs, plain = THEIRS[case.attention], PLAIN[case.attention]
    builders: dict[str, Callable[[], nn.Module]] = {
        "timm": partial(on_a_map, partial(theirs, channels)),
        "ours": partial(on_a_map, ours),
        "plain": partial(on_a_map, partial(plain, channels)),
        "copy": lambda: Copy().to(device),
    }
    if words.compile:
        builders["ours, compiled"] = partial(on_a_map, ours, compiled=True)
    conditions = Conditions(
        device,
        batch_size=case.batch,
        dtype=DTYPES[case.dtype],
        channels_last=case.channels_last,
        threads=words.threads,
        seconds=words.case_seconds,
    )
    given = Input(((channels, size, size),))
    times = timed_in_turn(str(case), builders, given, conditions, train=case.train)
    return Measured(case, times)


def table(done: Sequence[Measured]) -> str:
    """Return every case, the time of timm's and the ratios of ours."""
    rows = []
    for each in sorted(done, key=lambda each: (each.case.group, each.case.title)):
        ours = each.timings["ours"]
        row = {
            "attention": each.case.attention,
            "what": each.case.group[1],
            "map": each.case.title,
            "timm (ms)": f"{each.timings['timm'].median_ms:.3f}",
            "ours / timm": f"{ours.ratio:.2f}",
            "95 %": f"{ours.ratio_low:.2f} to {ours.ratio_high:.2f}",
            "ours / plain": f"{each.ratio('ours', 'plain'):.2f}",
            "ours / copy": f"{each.ratio('ours', 'copy'):.1f}",
        }
        if compiled := each.timings.get("ours, compiled"):
            row["compiled / timm"] = f"{compiled.ratio:.2f}"
        rows.append(row)
    return tabulate(rows, "keys", "pipe", disable_numparse=True)


def means(done: Sequence[Measured]) -> str:
    """Return the geometric means and the extremes of each group."""
    rows = []
    for group in sorted({each.case.group for each in done}):
        several = [each for each in done if each.case.group == group]
        for name in ("ours", "plain", "copy", "ours, compiled"):
            if name not in several[0].timings:
                continue
            ratios = [each.timings[name].ratio for each in several]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rows.append((*group, f"{name} / timm", len(ratios), f"{mean:.2f}", spread))
    heads = ["attention", "what", "ratio", "cases", "geometric mean", "from, to"]
    return tabulate(rows, heads, "pipe", disable_numparse=True)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Time the attentions alone.")
    parser.add_argument("--attention", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="time ours compiled, too")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after these")
    parser.add_argument("--case-seconds", type=float, default=2.0, help="for one case (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one map, one layout")
    words = parser.parse_args()
    device = torch.device(words.device or accelerator() or "cpu")
    start, done, asked = time.monotonic(), [], cases(words)
    for case in asked:
        if time.monotonic() - start < words.seconds:
            done.append(timed(case, device, words))
    threads = words.threads or torch.get_num_threads()
    print(
        f"{device_name(device)} ({platform.machine()}), {threads} threads, torch "
        f"{torch.__version__}, timm {timm.__version__}, {time.strftime('%Y-%m-%d')}; {len(done)} "
        f"of {len(asked)} cases, {words.case_seconds:g} s each\n"
    )
    if done:
        print(f"{means(done)}\n\n{table(done)}")


if __name__ == "__main__":
    main()
