"""Data sets of torchvision and timm."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torchvision
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset
from torch.utils.data import IterableDataset

from attn_surgery.errors import SurgeryError, nearest, one_line
from attn_surgery.finetune.data.source import Source, read_image
from attn_surgery.finetune.recipe import Data

_SPLIT_WORDS = ("train", "split", "image_set", "mode")


def of_torchvision(data: Data, name: str, train: bool) -> Source:
    """Return a data set of torchvision's, whichever way it says its split."""
    cls: Any = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(cls):
        known = torchvision.datasets.__all__
        raise SurgeryError(f"torchvision has no data set {name!r}{nearest(name, known)}")
    accepted = _keywords(cls)
    given: dict[str, Any] = {"root": data.root} if "root" in accepted else {}
    split = data.train_split if train else data.val_split
    word = next((each for each in _SPLIT_WORDS if each in accepted), None)
    if word is not None:
        given[word] = train if word == "train" else split
    told = any(_filled(v, "a", "") != _filled(v, "b", "") for v in data.options.values())
    if (word is None or word in data.options) and not told:
        raise SurgeryError(
            f"torchvision's {name} would give the same images to learn from and to measure on: "
            "say in data.options which are which, as root = '{root}/{split}'"
        )
    if "download" in accepted:
        given["download"] = data.download
    written = {key: _filled(value, split, data.root) for key, value in data.options.items()}
    try:
        samples = cls(**{**given, **written})
    except Exception as error:
        raise SurgeryError(f"cannot open torchvision's {name}: {one_line(error)}") from error
    if data.task == "detection":
        samples = _with_boxes(samples)
    named = getattr(samples, "class_to_idx", None)
    return Source(
        samples,
        len(getattr(samples, "classes", ())),
        class_to_idx=named if isinstance(named, dict) else {},
    )


def _with_boxes(samples: Any) -> Any:
    """Let a data set give boxes, and whether they are crowds and what they cover, as COCO's do."""
    wrap = torchvision.datasets.wrap_dataset_for_transforms_v2
    try:
        return wrap(samples, target_keys=("boxes", "labels", "iscrowd", "area"))
    except ValueError:
        return wrap(samples, target_keys=("boxes", "labels"))


def _keywords(cls: type) -> set[str]:
    """Return the keywords of a class, with those that it hands on to its bases."""
    found: set[str] = set()
    for each in cls.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values()
        found |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _filled(value: Any, split: str, root: str) -> Any:
    """Fill in ``{split}`` and ``{root}``."""
    if not isinstance(value, str):
        return value
    try:
        return value.format(split=split, root=root)
    except (KeyError, IndexError, ValueError) as error:
        raise SurgeryError(
            f"data.options: {value!r} may hold {{split}} and {{root}} in braces, and nothing else"
        ) from error


def of_timm(data: Data, name: str, train: bool) -> Source:
    """Return what timm's ``create_dataset`` makes of a name."""
    split = data.train_split if train else data.val_split
    written = {key: _filled(value, split, data.root) for key, value in data.options.items()}
    try:
        samples: Any = create_dataset(
            name,
            root=data.root or None,
            split=split,
            is_training=train,
            download=data.download,
            batch_size=data.batch_size,
            **written,
        )
    except Exception as error:
        raise SurgeryError(f"timm cannot open {name!r}: {one_line(error)}") from error
    named = getattr(getattr(samples, "reader", None), "class_to_idx", None) or {}
    if isinstance(samples, ImageDataset):
        samples = _Readable(samples.reader)
    elif not hasattr(samples, "__getitem__") or isinstance(samples, IterableDataset):
        samples = _gathered(samples)
    return Source(samples, len(named), class_to_idx=named)


class _Readable:
    """The images of timm's reader; timm's own data set gives the next one for one that is corrupt.

    Args:
        reader: Index -> ``(file, class)``.
    """

    def __init__(self, reader: Any):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, target, *_ = self.reader[index]
        with file:
            return read_image(file), target


def _gathered(stream: Any) -> list[tuple[Any, Any]]:
    """Read a stream (WebDataset and its kin) into memory, so that its samples can be counted.

    Raises:
        SurgeryError: Several processes would each get a part of it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise SurgeryError("a stream of samples is read by one process only: unpack it to a folder")
    return [(image, target) for image, target in stream]
