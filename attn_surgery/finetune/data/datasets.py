"""From a recipe's data to the images of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.data.folders import image_folder, scikit_digits
from attn_surgery.finetune.data.libraries import of_timm, of_torchvision
from attn_surgery.finetune.data.source import Source
from attn_surgery.finetune.recipe import Data

_PLAIN: dict[str, Callable[[Data, bool], Source]] = {
    "digits": scikit_digits,
    "folder": image_folder,
}
_LIBRARIES: dict[str, Callable[[Data, str, bool], Source]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
}


def open_source(data: Data, *, train: bool) -> Source:
    """Open the split that is learned, or the one that is measured.

    Raises:
        SurgeryError: It is not there, or not as it should be.

    Example:
        >>> source = open_source(Data("digits"), train=True)
        >>> len(source), source.classes, source.samples[0][0].size
        (1348, 10, (8, 8))
    """
    kind, _, name = data.name.partition("/")
    if data.name not in _PLAIN and (kind not in _LIBRARIES or not name):
        raise SurgeryError(
            f"data.name={data.name!r} is not understood{nearest(data.name, _PLAIN)}; give "
            f"{', '.join(map(repr, _PLAIN))}, 'torchvision/CLASS' or 'timm/NAME'"
        )
    split = train or data.held_out > 0
    source = _PLAIN[data.name](data, split) if not name else _LIBRARIES[kind](data, name, split)
    if not len(source):
        raise SurgeryError(f"{data.name} has no image to {'learn from' if train else 'measure on'}")
    if data.held_out:
        source = _held_out(source, data.held_out, train)
    limit = data.limit if train else data.val_limit
    if 0 < limit < len(source):
        source = _limited(source, limit)
    return _chosen(source, data.repeats * list(range(len(source)))) if data.repeats > 1 else source


def _held_out(source: Source, count: int, train: bool) -> Source:
    """Return what is learned of the training images when some are measured on, or those."""
    if count >= len(source):
        raise SurgeryError(f"data.held_out={count} leaves none of {len(source)} training images")
    drawn = _drawn(len(source), 1)
    return _chosen(source, drawn[count:] if train else drawn[:count])


def _limited(source: Source, limit: int) -> Source:
    """Return so many samples, drawn once and for all."""
    return _chosen(source, _drawn(len(source), 0)[:limit])


def _drawn(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu").tolist()


def _chosen(source: Source, numbers: list[int]) -> Source:
    chosen = sorted(numbers)
    names = [source.name(i) for i in chosen] if source.names else []
    return replace(source, samples=torch.utils.data.Subset(source.samples, chosen), names=names)
