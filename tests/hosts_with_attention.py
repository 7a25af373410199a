"""Hosts for the tests of positions and of replacing: small families, and blocks that attend.

The families are the libraries' own classes, so shallow and narrow that a step takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, fx, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock
from torchvision.models.video import resnet as video

WIDTH = 16

# Five families and a sixth in one dimension


class Block1d(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv1d(inward, outward, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(outward)
        self.conv2 = nn.Conv1d(outward, outward, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(outward)
        self.shortcut = nn.Sequential()
        if stride != 1 or inward != outward:
            self.shortcut = nn.Sequential(
                nn.Conv1d(inward, outward, 1, stride, bias=False), nn.BatchNorm1d(outward)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU())
        self.body = nn.Sequential(Block1d(32, 32, 1), Block1d(32, 64, 2))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(2))


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5)


def mobilenet() -> nn.Module:
    setting = [[1, 16, 1, 1], [2, 32, 2, 1], [2, 64, 2, 1]]
    setting[1][2], setting[2][2] = 2, 2
    return MobileNetV2(num_classes=5, inverted_residual_setting=setting, dropout=0.0)


def preactivation() -> nn.Module:
    return ResNetV2([2, 1, 1, 1], (64, 64, 128, 128), num_classes=5, stem_chs=32, bottle_ratio=0.5)


def convnext() -> nn.Module:
    return ConvNeXt(
        depths=(1, 1, 2, 1), dims=(32, 32, 64, 64), num_classes=5, drop_path_rate=0.1,
        ls_init_value=0.5,
    )  # fmt: skip


def video_resnet() -> nn.Module:
    return video.VideoResNet(
        video.BasicBlock, [video.Conv3DSimple] * 4, [1, 1, 1, 1], video.BasicStem, num_classes=5
    )


@dataclass(frozen=True)
class Family:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dims: int = 2

    def host(self) -> nn.Module:
        """Build it as training leaves it: gains, scales and statistics that are no constants."""
        torch.manual_seed(0)
        model = self.build()
        values = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for each in model.parameters():
                if each.dim() == 1:
                    each += torch.rand(each.shape, generator=values) * 0.4 + 0.1
            model.train()(self.input())
        return model

    def input(self, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))


FAMILIES = {
    "resnet": Family(resnet, (2, 3, 48, 48)),
    "mobilenet": Family(mobilenet, (2, 3, 48, 48)),
    "preactivation": Family(preactivation, (2, 3, 48, 48)),
    "convnext": Family(convnext, (2, 3, 64, 64)),
    "video": Family(video_resnet, (2, 3, 4, 24, 24), 3),
    "1d": Family(ResNet1d, (2, 3, 32), 1),
}


# Attention that a host holds, in as many spellings


class Gate(nn.Module):
    """Squeeze and excite, returning the gate alone."""

    def __init__(self, channels: int = WIDTH):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class Excite(Gate):
    """The same, returning the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class InPlaceExcite(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(super().forward(x))


class LinearExcite(nn.Module):
    """Fully connected layers on (N, C), as the paper has them."""

    def __init__(self, channels: int = WIDTH):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, 4), nn.ReLU(inplace=True), nn.Linear(4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)


class SpatialExcite(nn.Module):
    """The spatial half of CBAM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(maps))


def conv(stride: int = 1) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride, 1, bias=False)


class Attending(nn.Module):
    """Two convolutions with norms; what is between the second norm and the sum differs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class OwnModule(Attending):
    """The attention is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.se = Excite()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.branch(x)) + x)


class OwnLinear(OwnModule):
    def __init__(self) -> None:
        super().__init__()
        self.se = LinearExcite()


class OwnInPlace(OwnModule):
    def __init__(self) -> None:
        super().__init__()
        self.se = InPlaceExcite()


class InPlaceUnreturned(OwnInPlace):
    """What the module returns is not used: it changed its argument."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        self.se(out)
        return F.relu(out + x)


class InSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(), nn.BatchNorm2d(WIDTH), nn.ReLU(), Excite(), conv(), nn.BatchNorm2d(WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class FirstInSequential(nn.Module):
    """The attention is what the branch begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Excite(), conv(), nn.BatchNorm2d(WIDTH), nn.ReLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class ChildGate(Attending):
    """A child computes the gate, the block multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return F.relu(out * self.gate(out) + x)


class GateFirst(Attending):
    """The gate is the first child, whose place among the keys is not at the end."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.gate = Gate()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return F.relu(out * self.gate(out) + x)


class ChildGateInPlace(ChildGate):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out *= self.gate(out)
        out += x
        return F.relu(out)


class ChildGateMulInPlace(ChildGate):
    """The product's name is not used: the map is what it changed."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out.mul_(self.gate(out))
        return F.relu(out + x)


class SpelledOut(Attending):
    """The block's own children are the layers of the gate, hard sigmoid and all."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(WIDTH, 4, 1)
        self.fc2 = nn.Conv2d(4, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(self.squeeze(out)))))
        return F.relu(out * gate + x)


class GateInSequential(Attending):
    """The layers of the gate are held by a Sequential that the block calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, 4, 1), nn.ReLU(), nn.Conv2d(4, WIDTH, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return F.relu(self.gate(out).sigmoid() * out + x)


class HardSigmoidBySix(SpelledOut):
    """MobileNetV3 as it was written before there was a hard sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        gate = F.relu6(self.fc2(F.relu(self.fc1(self.squeeze(out)))) + 3.0) / 6.0
        return F.relu(out * gate + x)


class InMiddle(Attending):
    """As in MBConv: between the two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.se = Excite()

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(F.relu(self.bn1(self.conv1(x))))
        return self.bn2(self.conv2(out)) + x


class TwoAttentions(Attending):
    """CBAM as two children, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = Excite()
        self.spatial = SpatialExcite()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.spatial(self.channel(self.branch(x))) + x)


class OneOfTwo(nn.Module):
    """CBAM as one child."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = Excite()
        self.spatial = SpatialExcite()

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class Cbam(OwnModule):
    def __init__(self) -> None:
        super().__init__()
        self.se = OneOfTwo()


class Apart(InMiddle):
    """Two attentions at two places of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Excite()

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(F.relu(self.bn1(self.conv1(x))))
        return self.last(self.bn2(self.conv2(out))) + x


class NoShortcut(InMiddle):
    """As MobileNetV3's blocks of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(F.relu(self.bn1(self.conv1(x))))
        return self.bn2(self.conv2(out))


class NoShortcutSpelledOut(SpelledOut):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(self.squeeze(out)))))
        return F.relu(out * gate)


class WithMode(OwnModule):
    """Two graphs, one for each mode, both with the attention."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(self.branch(x))
        return out + x if self.training else out * 0.5 + x


class SpelledOutWithMode(SpelledOut):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out = out * F.hardsigmoid(self.fc2(F.relu(self.fc1(self.squeeze(out)))))
        return out + x if self.training else out * 0.5 + x


class ParameterGate(Attending):
    """The layers of the gate are parameters of the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 1, 1) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        pooled = F.adaptive_avg_pool2d(out, 1)
        return F.relu(out * torch.sigmoid(F.conv2d(pooled, self.weight)) + x)


class LoopingGate(ChildGate):
    """Nothing that a trace would show of the forward holds for every call."""

    def forward(self, x: Tensor, more: list[Tensor] | None = None) -> Tensor:
        out = self.branch(x)
        for each in more or []:
            out = out + each
        return F.relu(out * self.gate(out) + x)


# What looks like it and is none


class Glu(Attending):
    """A gated linear unit that no pooling feeds, outside of any residual block."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(x)) * torch.sigmoid(self.bn1(self.conv1(x)))


class SwishSpelledOut(Attending):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(out * torch.sigmoid(out))) + x


class Grn(Attending):
    """Global response normalisation (arXiv:2301.00808)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, WIDTH, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        level = out.norm(dim=(2, 3), keepdim=True)
        out = out + self.gamma * (out * (level / (level.mean(1, keepdim=True) + 1e-6))) + self.beta
        return self.bn2(self.conv2(out)) + x


class OwnNorm(Attending):
    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        mean, variance = out.mean((2, 3), keepdim=True), out.var((2, 3), keepdim=True)
        return self.bn2(self.conv2((out - mean) * torch.rsqrt(variance + 1e-5))) + x


class LayerScale(Attending):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.branch(x) + x


class SoftmaxPooling(nn.Module):
    """A head that averages positions by weights that it computes: the shape is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.score = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        weights = self.score(out).flatten(2).softmax(-1).view_as(out[:, :1])
        return out + (out * weights).sum((2, 3), keepdim=True) * 0.0


class Net(nn.Module):
    """A net of two blocks, as blocks are found in the wild."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.body = nn.Sequential(make(), make())
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def shared() -> nn.Module:
    """Two blocks that share one attention."""
    net = Net(OwnModule)
    first, second = net.body
    second.se = first.se
    return net


def traced(make: Callable[[], nn.Module]) -> nn.Module:
    return fx.symbolic_trace(Net(make))


def scripted() -> nn.Module:
    """The attentions are scripted, the blocks are not."""
    net = Net(OwnModule)
    for block in net.body:
        block.se = torch.jit.script(SpatialExcite())
    return net


def images(size: int = 16, seed: int = 1, **options: Any) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed), **options)
