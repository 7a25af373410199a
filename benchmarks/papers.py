"""The networks of the SENet and CBAM papers where torchvision's differ: version 1 of ResNet.

In the first version of the bottleneck (He et al. 2015, and Caffe's and the papers' counts) the 1x1
convolution has the stride, in version 1.5 (torchvision, timm) the 3x3 convolution has it. Both have
the same parameters; version 1 has fewer multiply-adds. A basic block is the same in both.

The papers' tables, one command each (the counts are those of tests/golden):

    attn-surgery report torchvision/resnet{18,34,50,101,152} torchvision/resnext50_32x4d \\
        timm/resnext101_32x4d --no-latency
    attn-surgery report benchmarks.papers:resnet{18,34,50,101}_v1 \\
        benchmarks.papers:resnext{50,101}_v1 --no-latency
"""

import torchvision
from timm import create_model
from torch import nn


def resnet18_v1() -> nn.Module:
    return torchvision.models.resnet18()


def resnet34_v1() -> nn.Module:
    return torchvision.models.resnet34()


def resnet50_v1() -> nn.Module:
    return _strided_first(torchvision.models.resnet50())


def resnet101_v1() -> nn.Module:
    return _strided_first(torchvision.models.resnet101())


def resnext50_v1() -> nn.Module:
    return _strided_first(torchvision.models.resnext50_32x4d())


def resnext101_v1() -> nn.Module:
    return _strided_first(create_model("resnext101_32x4d"))


def _strided_first(model: nn.Module) -> nn.Module:
    """Move the stride of every bottleneck from its 3x3 to its first 1x1 convolution."""
    for block in model.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            first.stride, second.stride = second.stride, first.stride
    return model
