"""A small network that restores images, and sees of each pixel what is around it, no more."""

from __future__ import annotations

from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class SmallRestorer(nn.Module):
    """The network of Lim et al. 2017 (arXiv:1707.02921, section 3), without its upsampling.

    A convolution, residual blocks of two convolutions without norms, a convolution, and the image
    added to what comes out. Nothing is ever downsampled: a pixel depends on those that are at most
    ``2 blocks + 2`` away.

    Shapes: ``(N, channels, H, W)`` -> ``(N, channels, H, W)``, from 0 to 1 about.

    Args:
        blocks: How many.
        width: Channels in between.
        channels: Of the images.

    Example:
        >>> import torch
        >>> SmallRestorer()(torch.rand(2, 3, 24, 32)).shape
        torch.Size([2, 3, 24, 32])
    """

    def __init__(self, blocks: int = 4, width: int = 32, channels: int = 3):
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*[_Block(width) for _ in range(blocks)])
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch of images."""
        return x + self.tail(self.body(self.head(x - 0.5)))


def small_restorer(**options: int) -> nn.Module:
    """Build a `SmallRestorer`; as a host, ``attn_surgery.finetune.small_restorer:small_restorer``.

    Args:
        **options: Its arguments.

    Example:
        >>> len(small_restorer(blocks=2).body)
        2
    """
    return SmallRestorer(**options)
