"""From an image, as its library gives it, to what a model is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.data.domains import drawn_domain
from attn_surgery.finetune.data.source import as_mode
from attn_surgery.finetune.recipe import Data


def image_config(data: Data, model: nn.Module | None) -> dict[str, Any]:
    """Return size, interpolation and normalization of images, as timm says them."""
    own: Any = getattr(model, "pretrained_cfg", None) or {}
    config = dict(resolve_data_config({"img_size": None}, pretrained_cfg=own))
    side = data.image_size
    size = (data.channels, side, side) if side else (data.channels, *config["input_size"][1:])
    config["input_size"] = size
    if data.channels == 1:
        config.update(mean=(0.5,), std=(0.5,))
    return config


def classification_transforms(
    data: Data, config: dict[str, Any], train: bool
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return timm's transform of an image; the target stays."""
    given = dict(data.train_transform if train else data.val_transform)
    accepted = inspect.signature(create_transform).parameters
    name = "data.train_transform" if train else "data.val_transform"
    for key in given:
        if key not in accepted:
            raise SurgeryError(
                f"{name} has no key {key!r}{nearest(key, accepted)}: it holds keywords of "
                "timm.data.create_transform"
            )
    usual = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    if not train:
        usual["crop_pct"] = config["crop_pct"]
    made: Any = create_transform(**{**usual, "is_training": train, **given})
    return ImageTransform(made, "L" if data.channels == 1 else "RGB", data.domains)


@dataclass(frozen=True)
class ImageTransform:
    """A transform of the image alone.

    Attributes:
        made: From a PIL image to a tensor.
        mode: PIL's mode.
        domains: Which an image may be brought to before, each as often as the others.
    """

    made: Callable[[Any], Any]
    mode: str
    domains: tuple[str, ...] = ()

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        """Transform one image."""
        image = as_mode(image, self.mode)
        if self.domains:
            image = drawn_domain(image, self.domains)
        return self.made(image), target
