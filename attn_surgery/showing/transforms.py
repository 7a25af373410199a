"""From an image to what a model is given, and back to what that shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
import torchvision
from PIL import Image
from timm.data.config import resolve_data_config, resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from attn_surgery.host import guess_input
from attn_surgery.showing.gates import Numbers

Transform = Callable[[Any], Any]
"""From a PIL image to a tensor ``(C, H, W)``."""

SIDE = 256
"""The longer side of a picture, in pixels, at most."""


def default_transform(model: nn.Module, name: str = "") -> tuple[Transform, str]:
    """Return the transform with which a model was evaluated, as far as it can be told, and whose.

    Args:
        model: timm's say by themselves what they take.
        name: As `attn_surgery.host.load_model` takes it: torchvision knows its models by it.

    Returns:
        The transform, and in words where it comes from. For a model of which nothing is known:
        the shorter side to 256, the central 224 x 224, ImageNet's normalisation (for one channel
        mean and standard deviation 0.5).

    Example:
        >>> import timm
        >>> default_transform(timm.create_model("resnet18", pretrained=False))[1]
        "timm's for this model"
        >>> default_transform(nn.Conv2d(3, 8, 3), "torchvision/resnet18")[1]
        "torchvision's for resnet18"
    """
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        return _evaluating(resolve_model_data_config(model)), "timm's for this model"
    if (weights := default_weights(name)) is not None:
        return weights.transforms(), f"torchvision's for {name.removeprefix('torchvision/')}"
    channels = guess_input(model).shapes[0][0]
    usual = resolve_data_config({"input_size": (channels, 224, 224)})
    if channels == 1:
        usual.update(mean=(0.5,), std=(0.5,))
    return _evaluating(usual), "the usual one of ImageNet"


def _evaluating(config: dict[str, Any]) -> Transform:
    made: Any = create_transform(**config, is_training=False)
    return made


def default_weights(name: str) -> Any:
    """Return torchvision's entry of the default weights of a model; None where it knows none.

    Example:
        >>> default_weights("resnet50").meta["categories"][0], default_weights("my:net")
        ('tench', None)
    """
    arch = name.removeprefix("torchvision/")
    if arch not in torchvision.models.list_models():
        return None
    return getattr(torchvision.models.get_model_weights(arch), "DEFAULT", None)


def picture_of(image: Tensor, transform: Transform | None) -> Numbers | None:
    """Return what a model sees as a picture ``(H, W, 3)`` of uint8, or None if it is no image.

    Args:
        image: ``(C, *spatial)``, as the model is given it.
        transform: What made it: its normalisation is undone. Without one that can be told, the
            least number is black and the greatest white.

    Example:
        >>> picture_of(torch.rand(1, 8, 6), None).shape
        (8, 6, 3)
    """
    if image.dim() != 3:
        return None
    pixels = image.detach().cpu().float()
    mean, std = next(_normalisations(transform), (None, None))
    if mean is not None and std is not None and len(mean) in (1, len(pixels)):
        pixels = pixels * _column(std) + _column(mean)
    else:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    drawn = (255 * pixels.clamp(0, 1).nan_to_num()).round().to(torch.uint8)
    return _at_most(drawn.permute(1, 2, 0).numpy())


def _column(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).cpu().flatten()[:, None, None]


def _normalisations(transform: Any) -> Iterator[tuple[Any, Any]]:
    """Yield mean and standard deviation of each normalisation in a transform, the last first."""
    if (parts := getattr(transform, "transforms", None)) is not None:
        for part in reversed(list(parts)):
            yield from _normalisations(part)
    mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
    if mean is not None and std is not None:
        yield torch.as_tensor(mean).flatten(), torch.as_tensor(std).flatten()


def _at_most(picture: Numbers) -> Numbers:
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return numpy.asarray(image)
