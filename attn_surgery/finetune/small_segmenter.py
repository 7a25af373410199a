"""A small network that tells the class of each pixel, for recipes that run on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_surgery.finetune.small_resnet import SmallStages


class SmallSegmenter(SmallStages):
    """The stages of `SmallResNet`, and one linear layer over what all of them say of a pixel.

    What the stages return is brought to one size and stacked, a hypercolumn (Hariharan et
    al. 2015, arXiv:1411.5752, section 3), of which a 1x1 convolution makes the classes. The
    stack has the first stage's size: a linear layer and enlarging can be exchanged.

    Args:
        classes: How many, with what is none of the others.
        n: How many basic blocks each of the three stages has.
        width: Channels of the first stage; the others have twice and four times as many.
        channels: Of the images.
        stem_stride: 2 starts at half the resolution.

    Example:
        >>> SmallSegmenter(classes=11)(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 11, 64, 64])
    """

    def __init__(
        self,
        classes: int,
        n: int = 1,
        width: int = 16,
        channels: int = 3,
        stem_stride: int = 2,
    ):
        super().__init__(n, width, channels, stem_stride)
        self.classifier = nn.Conv2d(7 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the pixels of a batch: ``(N, channels, H, W)`` -> ``(N, classes, H, W)``."""
        size = x.shape[-2:]
        x1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        maps = [F.interpolate(each, x1.shape[-2:], mode="bilinear") for each in (x2, x3)]
        logits = self.classifier(torch.cat([x1, *maps], 1))
        return F.interpolate(logits, size, mode="bilinear")


def small_segmenter(**options: int) -> nn.Module:
    """Build a `SmallSegmenter`, for ``attn_surgery.finetune.small_segmenter:small_segmenter``.

    Args:
        **options: As for `SmallSegmenter`.
    """
    return SmallSegmenter(**options)
