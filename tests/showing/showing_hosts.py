"""Small classifiers with residual blocks, of one, two and three dims of space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.showing.gates import Numbers

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Block(nn.Module):
    """The plain block."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.conv1 = CONVS[dims](channels, channels, 3, padding=1)
        self.act = nn.ReLU()
        self.conv2 = CONVS[dims](channels, channels, 3, padding=1)
        self.norm = NORMS[dims](channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv2(self.act(self.conv1(x)))) + x)


class Net(nn.Module):
    """Two blocks, then logits, or, as a dense model, maps of logits."""

    def __init__(self, channels: int = 8, dims: int = 2, classes: int = 3, dense: bool = False):
        super().__init__()
        self.stem = CONVS[dims](3, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(channels, dims), Block(channels, dims))
        self.head: nn.Module = nn.Linear(channels, classes)
        if dense:
            self.head = CONVS[dims](channels, classes, 1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x if self.dense else x.flatten(2).mean(2))


def net(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options).eval()


def scaled(factor: float, **options: Any) -> nn.Module:
    """Return a net whose attention multiplies every map by a factor."""
    model = attn_surgery.apply(net(**options), "scale", shift=False)
    with torch.no_grad():
        for each in attn_surgery.inserted(model).values():
            each.get_parameter("scale").fill_(factor)
    return model


def images(number: int = 2, side: int = 16, dims: int = 2) -> Tensor:
    made_by = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, *[side] * dims, generator=made_by)


def known(numbers: Numbers | None) -> Numbers:
    """Return an array that has to be there."""
    assert numbers is not None
    return numbers
