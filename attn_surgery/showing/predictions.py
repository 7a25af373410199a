"""What a model says of an image: logits, classes and their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.showing.transforms import default_weights

IMAGENET = "imagenet"
"""Stands for the names of ImageNet-1k's classes."""
Target = int | str
"""A class, by its number or its name."""


def logits_of(output: Any) -> Tensor | None:
    """Return the logits ``(1, classes)`` of a model's output for one image, None if it has none.

    Example:
        >>> import torch
        >>> logits_of(torch.zeros(1, 10)).shape, logits_of(torch.zeros(1, 10, 7, 7))
        (torch.Size([1, 10]), None)
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(found, Tensor) and found.dim() == 2 and len(found) == 1 and found.shape[1] > 1:
        return found
    return None


class Classifier(nn.Module):
    """A model that returns logits ``(1, classes)`` alone.

    Args:
        model: One that returns them, perhaps among other things.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | None:
        """Return the logits of a batch of one."""
        return logits_of(self.model(image))


def described(output: Any) -> str:
    """Say what a model returned, in a few words.

    Example:
        >>> import torch
        >>> described(torch.zeros(1, 21, 8, 8)), described([{}])
        ('a tensor (1, 21, 8, 8)', 'a list')
    """
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    name = type(output).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def class_names(
    classes: str | Sequence[str] | None, count: int, model: nn.Module, name: str = ""
) -> list[str]:
    """Return a name for each class.

    Args:
        classes: Names; ``"imagenet"`` for ImageNet-1k's; None for what the library that the model
            comes from says, or else numbers.
        count: How many classes there are.
        model: Whose; timm's know how many classes they were trained for.
        name: The model's; torchvision knows classes by it.

    Raises:
        SurgeryError: There are more names, or fewer.

    Example:
        >>> class_names(["cat", "dog"], 2, nn.Identity()), class_names(None, 2, nn.Identity())
        (['cat', 'dog'], ['class 0', 'class 1'])
    """
    if classes is None:
        classes = _known(count, model, name) or [f"class {i}" for i in range(count)]
    if classes == IMAGENET:
        names = ImageNetInfo()
        classes = [names.index_to_description(i) for i in range(names.num_classes())]
    elif isinstance(classes, str):
        raise SurgeryError(f"classes={classes!r}: give a list of names, or {IMAGENET!r}")
    if len(classes) != count:
        raise SurgeryError(f"classes has {len(classes)} names, but the model has {count} classes")
    return [str(each) for each in classes]


def _known(count: int, model: nn.Module, name: str) -> str | Sequence[str] | None:
    """Return the names of the classes that a model was trained for, if it still has as many."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict):
        return IMAGENET if count == config.get("num_classes") == 1000 else None
    told = default_weights(name)
    names = told.meta.get("categories", ()) if told is not None else ()
    return names if len(names) == count else None


def targets_of(
    target: Target | Sequence[Target] | None, images: int, names: Sequence[str]
) -> list[int | None]:
    """Return the class to explain for each image; None for the host's top prediction.

    Args:
        target: As for `attn_surgery.show`.
        images: How many images there are.
        names: The classes'.

    Raises:
        SurgeryError: There is no such class, or a list has another length.

    Example:
        >>> targets_of("dog", 2, ["cat", "dog"]), targets_of(None, 2, ["cat", "dog"])
        ([1, 1], [None, None])
    """
    if target is None or isinstance(target, (int, str)):
        return [None if target is None else _number(target, names)] * images
    if len(target) != images:
        raise SurgeryError(f"target has {len(target)} classes, but there are {images} images")
    return [_number(each, names) for each in target]


def _number(target: Target, names: Sequence[str]) -> int:
    if isinstance(target, str) and target in names:
        return names.index(target)
    if isinstance(target, int) and 0 <= target < len(names):
        return target
    raise SurgeryError(
        f"target={target!r} is none of the {len(names)} classes, {names[0]!r} to "
        f"{names[-1]!r}{nearest(str(target), names)}"
    )
