"""Branches and additions as people spell them who do not write for a tracer."""

from __future__ import annotations

from typing import Any

import einops
import torch
from einops.layers.torch import Rearrange
from generated_layers import Residual, Shape, conv, norm
from torch import nn

AXES = {1: "l", 2: "h w", 3: "d h w"}
"""The names of the spatial axes in patterns."""


class Convolved(Residual):
    """Two convolutions, and something else before or between them."""

    def make_branch(self, shape: Shape) -> None:
        self.conv1 = conv(shape, stride=shape.stride, bias=False)
        self.conv2 = conv(shape.same(), bias=False)
        self.bn2 = norm(shape)
        self.axes = AXES[shape.dims]


class ByPattern(Convolved):
    def branch(self, x: Any) -> Any:
        f = torch.relu(self.conv1(x))
        f = einops.rearrange(f, f"b c {self.axes} -> b {self.axes} c")
        f = einops.rearrange(f, f"b {self.axes} c -> b c {self.axes}")
        return self.ends_here(self.bn2(self.conv2(f)), "bn2")


class PatternMean(Convolved):
    def branch(self, x: Any) -> Any:
        f = torch.relu(self.conv1(x))
        ones = " ".join("1" for _ in self.axes.split())
        f = f - einops.reduce(f, f"b c {self.axes} -> b c {ones}", "mean")
        return self.ends_here(self.bn2(self.conv2(f)), "bn2")


class LayerMadeHere(Convolved):
    def branch(self, x: Any) -> Any:
        f = nn.LeakyReLU(0.1)(self.conv1(x))
        f = Rearrange(f"b c {self.axes} -> b {self.axes} c")(f)
        f = Rearrange(f"b {self.axes} c -> b c {self.axes}")(f)
        return self.ends_here(self.bn2(self.conv2(f)), "bn2")


class Shifted(Convolved):
    """As temporal shift does, along the last dim."""

    def branch(self, x: Any) -> Any:
        f = torch.relu(self.conv1(x))
        shifted = torch.zeros_like(f)
        shifted[..., :-1] = f[..., 1:]
        shifted[..., -1:].copy_(f[..., :1])
        return self.ends_here(self.bn2(self.conv2(shifted)), "bn2")


class OverParts(Convolved):
    def branch(self, x: Any) -> Any:
        parts = [torch.relu(part) for part in torch.chunk(self.conv1(x), 2, dim=1)]
        return self.ends_here(self.bn2(self.conv2(torch.cat(parts, 1))), "bn2")


class StarredSizes(Convolved):
    def branch(self, x: Any) -> Any:
        f = torch.relu(self.conv1(x))
        batch, *sizes = f.shape
        return self.ends_here(self.bn2(self.conv2(f.flatten(1).view(batch, *sizes))), "bn2")


class Precise(Convolved):
    def branch(self, x: Any) -> Any:
        f = torch.relu(self.conv1(torch.as_tensor(x)))
        return self.ends_here(self.bn2(self.conv2(f * (1 + torch.finfo(f.dtype).eps))), "bn2")


class EndsByItems(Convolved):
    """The end is written, part by part, into a tensor that is empty before."""

    def branch(self, x: Any) -> Any:
        f = self.bn2(self.conv2(torch.relu(self.conv1(x))))
        out = torch.empty_like(f)
        out[:, :1] = f[:, :1]
        out[:, 1:] = f[:, 1:]
        return self.ends_here(out)


SPELLED_IN_CHILD: dict[str, type[Residual]] = {
    "einops": ByPattern,
    "einops mean": PatternMean,
    "layers made here": LayerMadeHere,
    "shifted": Shifted,
    "loop over chunk": OverParts,
    "starred": StarredSizes,
    "finfo": Precise,
}
SPELLED_BRANCHES: dict[str, type[Residual]] = {**SPELLED_IN_CHILD, "items set": EndsByItems}


# Additions


class AddedStack(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(torch.stack([self.shortcut(x), self.end(x)]).sum(0))


class Addcmul(Residual):
    def forward(self, x: Any) -> Any:
        s = self.shortcut(x)
        return self.out(torch.addcmul(s, self.end(x), s.new_ones(())))


class WithData(Residual):
    """Goes another way for some inputs, of which there is none."""

    def forward(self, x: Any) -> Any:
        f = self.end(x)
        if f.abs().max() > 1e9:
            f = f * 0
        return self.out(f + self.shortcut(x))


class WithLoop(Residual):
    def forward(self, x: Any) -> Any:
        while x.abs().max() > 1e9:
            x = x / 2
        return self.out(self.end(x) + self.shortcut(x))


class WithAssertion(Residual):
    """An assertion on a way that no block takes."""

    is_conditional = False

    def forward(self, x: Any, condition: Any = None) -> Any:
        f = self.end(x)
        if self.is_conditional:
            assert condition is not None
            f = f + condition
        return self.out(f + self.shortcut(x))


class WithoutAutocast(Residual):
    def forward(self, x: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            torch._check(x.shape[1] > 0)
            return self.out(self.end(x) + self.shortcut(x))


SPELLED_ADDITIONS: dict[str, type[Residual]] = {"stack, sum": AddedStack}
UNFAITHFULLY_SPELLED: dict[str, type[Residual]] = {
    "addcmul": Addcmul,
    "data": WithData,
    "while": WithLoop,
    "assertion": WithAssertion,
    "autocast": WithoutAutocast,
}
