"""Small residual blocks that differ in how their ``forward`` is spelled.

Each is ``relu(bn(conv))`` then ``bn(conv)`` added to its input, on 8 channels, and does one thing
that a trace of it could freeze, lose or repeat.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.utils.checkpoint import checkpoint
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.quantization.resnet import QuantizableBasicBlock
from torchvision.models.resnet import BasicBlock

WIDTH = 8


class Block(nn.Module):
    """The plain block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + x)


# Spellings


class InPlace(Block):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return self.act(out)


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(F.conv2d(x, self.conv1.weight, padding=1)))
        return torch.add(self.bn2(self.conv2(out)), x).relu()


class FunctionalEnd(Block):
    """No child ends the branch."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(F.conv2d(x, self.conv1.weight, padding=1))
        return F.conv2d(out, self.conv2.weight, padding=1) + x


class MethodAdd(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).add_(x)


class Quantizable(Block):
    def __init__(self) -> None:
        super().__init__()
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_add.add_relu(self.branch(x), x)


class Twice(Block):
    """Two additions in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU())
        self.end = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(x)
        return x + self.end(self.second(x))


class Loop(nn.Module):
    """An addition for each layer of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for each in self.layers:
            x = x + each(x)
        return x


def layer() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
    )


class Super(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return checkpoint(self.branch, x, use_reentrant=False) + x
        return self.branch(x) + x


class Outputs(NamedTuple):
    out: Tensor
    shortcut: Tensor


class ReturnsTuple(Block):
    def forward(self, x: Tensor) -> Outputs:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Outputs(self.branch(x) + x, x)


# What the mode decides


class Modes(Block):
    """Drops in training, rescales in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.dropout(self.branch(x), 0.3, self.training)
        if self.training:
            return out + x
        return out * 0.5 + x


class ModeOfChild(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        if self.bn2.training:
            out = out * 2.0
        return out + x


class StochasticDepth(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(1).item() < 0.5:
            return x
        return self.branch(x) + x


class PythonStochasticDepth(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.5:
            return x
        return self.branch(x) + x


class Noise(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * (1 + 0.1 * torch.rand(8, 1, 1)) + x


class NoiseLike(Block):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(8, 1, 1, dtype=x.dtype, device=x.device)
        return self.branch(x) * (1 + 0.1 * noise) + x


# Python arguments


class Flag(Block):
    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        out = self.branch(x)
        if flag:
            out = out * 3.0
        return out + x


class FlagAtConv(Block):
    """The branch ends in a convolution."""

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        out = self.conv2(self.act(self.bn2(self.bn1(self.conv1(x)))))
        if flag:
            out = out * 3.0
        return out + x


class FlagAtFunction(Block):
    """The branch ends in a function, on ways between which an argument chooses."""

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        out = torch.tanh(self.branch(x))
        if flag:
            out = out * 3.0
        return out + x


class Asks(Block):
    """The data choose the way, and the branch ends in a function."""

    def forward(self, x: Tensor, least: float = 0.0) -> Tensor:
        out = self.branch(x)
        if bool(out.sum() > least):
            out = out * 0.5
        out = torch.tanh(out)
        return out + x


class KeywordOnly(Block):
    def forward(self, x: Tensor, *, scale: float = 1.0, act: bool = True) -> Tensor:
        out = self.branch(x) * scale + x
        return F.relu(out) if act else out


class Variadic(Block):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.branch(x)
        for each in args:
            out = out * each
        return out + x if kwargs.get("add", True) else out


class OptionalTensor(Block):
    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out = self.branch(x)
        if more is not None:
            out = out + more
        return out + x


class Number(Block):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.branch(x) * scale + x


class Word(Block):
    def forward(self, x: Tensor, mode: str = "relu") -> Tensor:
        out = self.branch(x) + x
        if mode == "relu":
            out = F.relu(out)
        elif mode in ("tanh", "both"):
            out = torch.tanh(out)
        return out


class WordInSet(Block):
    def forward(self, x: Tensor, mode: str = "relu") -> Tensor:
        out = self.branch(x) + x
        if mode in {"tanh", "both"}:
            out = torch.tanh(out)
        return out


class WordInDict(Block):
    def forward(self, x: Tensor, mode: str = "relu") -> Tensor:
        last = {"relu": F.relu, "tanh": torch.tanh}.get(mode, F.gelu)
        return last(self.branch(x) + x)


class WordAsText(Block):
    def forward(self, x: Tensor, mode: str = "relu") -> Tensor:
        out = self.branch(x) + x
        return torch.tanh(out) if f"{mode}".startswith("t") else out


class CallableDefault(Block):
    def forward(self, x: Tensor, last: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
        return last(self.branch(x) + x)


class Depth(Block):
    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        for _ in range(times):
            x = self.act(x)
        return self.branch(x) + x


# The input's own properties


class Shape(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        return self.branch(x) + x


class NeedsGradient(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x) + x
        return out * 2.0 if x.requires_grad else out


class Asserting(Block):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] % 2 == 0, f"odd width {x.shape[-1]}"
        return self.branch(x) + x


class Recovering(Block):
    def forward(self, x: Tensor) -> Tensor:
        try:
            more = x.view(-1, 8, 8, 8)
        except RuntimeError:
            more = -x
        return self.branch(x * torch.sigmoid(more)) + x


# The state of torch, of Python, of the block


class GradMode(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x) + x
        return out if torch.is_grad_enabled() else out * 2.0


class NoGrad(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            level = x.abs().mean()
        return self.branch(x - level) + x


class Counter(Block):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.branch(x) + x


class CountingBuffer(Block):
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.branch(x) + x


class Recorder(Block):
    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        self.features.append(out.detach().sum())
        return out + x


SHIFT = 0.5


class Settings:
    scale = 1.0


class ReadsGlobal(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * SHIFT + x


class ReadsSettings(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * Settings.scale + x


class ReadsFunctionAttribute(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * settings.scale + x  # pyright: ignore[reportFunctionMemberAccess]


def settings() -> None:
    """Carry an attribute, as some configurations do."""


setattr(settings, "scale", 1.0)  # noqa: B010


class ReadsDict(Block):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"scale": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * self.config["scale"] + x


class ReadsNamespace(Block):
    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * self.config.scale + x


class ReadsChild(Block):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.branch(x), self.drop.p, self.training) + x


class ReadsClass(Block):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * self.scale + x


class Attributes(Block):
    """Everything that a user may set afterwards."""

    downsample: nn.Module | None
    gamma: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.use_res = True
        self.scale = 1.0
        self.register_module("downsample", None)
        self.register_parameter("gamma", None)
        self.last: Callable[[Tensor], Tensor] = functools.partial(F.leaky_relu, negative_slope=0.1)
        self.first = lambda x: x * 1.5

    @property
    def twice(self) -> float:
        return 2 * self.scale

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.branch(self.first(x)) * self.twice
        if self.gamma is not None:
            out = out * self.gamma
        if self.use_res:
            out = out + shortcut
        return self.last(out)


class Skippable(Block):
    """A flag that leaves the branch out altogether."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            return x
        return self.branch(x) + x


# Forwards that are not their class's own


def patched() -> nn.Module:
    """Patch the forward of one block, as monkey-patching users do."""
    block = Block()
    block.forward = types.MethodType(_patch, block)
    return block


def _patch(self: Block, x: Tensor) -> Tensor:
    return self.branch(x) * 0.5 + x


def patched_with_flag() -> nn.Module:
    block = Block()
    block.forward = types.MethodType(_flag_patch, block)
    return block


def _flag_patch(self: Block, x: Tensor, flag: bool = False) -> Tensor:
    out = self.branch(x)
    return out * 3.0 + x if flag else out + x


def graph_module() -> nn.Module:
    return fx.symbolic_trace(Block())


def basic_block() -> nn.Module:
    return BasicBlock(WIDTH, WIDTH)


def quantizable_block() -> nn.Module:
    return QuantizableBasicBlock(WIDTH, WIDTH)


def inverted_residual() -> nn.Module:
    return InvertedResidual(WIDTH, WIDTH, 1, 4)


class Network(nn.Module):
    """A net around a block, as blocks are found in the wild."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.body = nn.Sequential(make(), make())
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def graph_module_network() -> nn.Module:
    return fx.symbolic_trace(Network(Block))


class Branch(nn.Module):
    """Two convolutions and a norm, for blocks to add to what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def branch(self, x: Tensor) -> Tensor:
        return self.norm(self.b(torch.relu(self.a(x))))
