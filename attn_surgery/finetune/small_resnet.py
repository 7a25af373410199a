"""A small residual network for small images, to be trained from nothing in minutes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class SmallStages(nn.Module):
    """A convolution and three stages of n basic blocks, without what makes them tell classes.

    Args:
        n: Blocks in a stage.
        width: Channels of the first stage; the others have twice and four times as many.
        channels: Of the images.
        stem_stride: 2 starts at half the resolution.
    """

    def __init__(self, n: int, width: int, channels: int, stem_stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, n, stride=1)
        self.layer2 = _stage(width, 2 * width, n, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, n, stride=2)


class SmallResNet(SmallStages):
    """The network of He et al. 2015 (arXiv:1512.03385), section 4.2, for images of 32 pixels or so.

    A convolution, three stages of n basic blocks that are ``width``, 2 ``width`` and 4 ``width``
    channels wide, average pooling and a linear layer: 6n + 2 layers. What differs: projections
    (option B) where the width changes.

    Shapes: ``(N, channels, H, W)`` -> ``(N, classes)``.

    Args:
        n: Blocks in a stage.
        width: Channels of the first stage; 16 in the paper.
        channels: Of the images.
        classes: How many classes.
        stem_stride: 2 starts at half the resolution.

    Example:
        >>> import torch
        >>> SmallResNet()(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        n: int = 1,
        width: int = 16,
        channels: int = 1,
        classes: int = 10,
        stem_stride: int = 1,
    ):
        super().__init__(n, width, channels, stem_stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch: ``(N, channels, H, W)`` -> ``(N, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def _stage(inputs: int, width: int, n: int, stride: int) -> nn.Sequential:
    projection = None
    if stride != 1 or inputs != width:
        layers = {"0": nn.Conv2d(inputs, width, 1, stride, bias=False), "1": nn.BatchNorm2d(width)}
        projection = nn.Sequential(OrderedDict(layers))
    first = BasicBlock(inputs, width, stride, projection)
    return nn.Sequential(first, *[BasicBlock(width, width) for _ in range(n - 1)])


def small_resnet(**options: int) -> nn.Module:
    """Build a `SmallResNet`; as a host, ``attn_surgery.finetune.small_resnet:small_resnet``.

    Args:
        **options: As for `SmallResNet`.
    """
    return SmallResNet(**options)
