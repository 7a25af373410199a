"""Views: what a transform makes of each image, computed once and read from a file ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import PIL
import timm
import torch
import torchvision
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data.batches import Loading, Place, Prepared, loaded
from attn_surgery.finetune.data.source import Source
from attn_surgery.finetune.process import derived

_BATCH = 256
MADE_BY = {each.__name__: each.__version__ for each in (torch, torchvision, timm, PIL)}


class Views(Dataset[Any]):
    """The views of a split: the seed of a place chooses one of an image's.

    Args:
        source: What they are of.
        images: ``(views, N, C, H, W)``; or ``(views, N, values)``, what a model makes of them.
        targets: ``(N,)``.
        name: That of their file.
    """

    def __init__(self, source: Source, images: Any, targets: Tensor, name: str):
        self.source, self.images, self.targets, self.name = source, images, targets, name

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        index, seed = place
        image = numpy.array(self.images[seed % len(self.images), index])
        return torch.from_numpy(image), self.targets[index]


def views_of(split: Prepared, seeds: Iterable[int | None], told: object, folder: Path) -> Views:
    """Return the views of a split, from their file, which is written where there is none.

    Args:
        split: Of images whose target is a number, and whose transform gives tensors of one shape.
        seeds: For each view, its seed; None for the seed of an image that is measured.
        told: What decides the views besides the split's images, as plain data.
        folder: Where the files are.

    Raises:
        SurgeryError: An image cannot be read, or a file cannot be written.
    """
    seeds = list(seeds)
    words = json.dumps([told, seeds, len(split), MADE_BY], sort_keys=True, default=str)
    path = folder / f"{hashlib.blake2b(words.encode(), digest_size=8).hexdigest()}.npy"
    targets = path.with_suffix(".targets.npy")
    try:
        if not targets.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(split, seeds, path, targets)
        images = numpy.load(path, mmap_mode="r")
        return Views(split.source, images, torch.from_numpy(numpy.load(targets)), path.stem)
    except (OSError, ValueError) as error:
        raise SurgeryError(f"the views of images, {path}: {one_line(error)}") from error


def _write(split: Prepared, seeds: list[int | None], path: Path, targets: Path) -> None:
    """Write the images, then the targets, which stand for all being there."""
    first, _ = split[0, 0]
    partial = path.with_suffix(".partial.npy")
    images = open_memmap(
        partial, mode="w+", dtype=numpy.float32, shape=(len(seeds), len(split), *first.shape)
    )
    found: list[Tensor] = []
    places = [(view, index) for view in range(len(seeds)) for index in range(len(split))]
    parts = [places[start : start + _BATCH] for start in range(0, len(places), _BATCH)]
    batches = loaded(split, Loading(_BATCH), [[_seeded(seeds, *each) for each in p] for p in parts])
    for part, (pixels, labels) in zip(tqdm(parts, "views", leave=False), batches, strict=True):
        views, indices = zip(*part, strict=True)
        images[list(views), list(indices)] = pixels.numpy()
        found.append(labels)
    images.flush()
    del images
    partial.replace(path)
    with partial.open("wb") as file:
        numpy.save(file, torch.cat(found)[: len(split)].numpy())
    partial.replace(targets)


def _seeded(seeds: list[int | None], view: int, index: int) -> Place:
    seed = seeds[view]
    return index, index if seed is None else derived("view", seed, index)
