"""Features: what a frozen part of a model makes of each view, computed once and read ever after."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data.views import MADE_BY, Views

_BATCH = 256


def features_of(
    views: Views, values: int, computed: Callable[[Tensor], Tensor], told: object, folder: Path
) -> Views:
    """Return the features of views, from their file, which is written where there is none.

    Args:
        views: Of images.
        values: How many numbers there are of an image.
        computed: From images ``(N, C, H, W)`` to features ``(N, values)``.
        told: What decides the features besides the views, as plain data.
        folder: Where the files are.

    Raises:
        SurgeryError: A file cannot be written or read, or the disk has no room for it.
    """
    words = json.dumps([views.name, told, MADE_BY], sort_keys=True, default=str)
    name = hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
    path = folder / f"{name}.npy"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(views, values, computed, path)
        features = numpy.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SurgeryError(f"the features of images, {path}: {one_line(error)}") from error
    return Views(views.source, features, views.targets, name)


def _write(views: Views, values: int, computed: Callable[[Tensor], Tensor], path: Path) -> None:
    shape = (len(views.images), len(views), values)
    needed, free = 4 * numpy.prod(shape, dtype=int), shutil.disk_usage(path.parent).free
    if needed > free:
        raise SurgeryError(
            f"the features of {len(views):,} images, {values:,} numbers in each of "
            f"{shape[0]} views, take {needed / 1e9:.1f} GB, and {path.parent} has "
            f"{free / 1e9:.1f}: lower data.views, or leave data.prefix out"
        )
    partial = path.with_suffix(".partial.npy")
    features = open_memmap(partial, mode="w+", dtype=numpy.float32, shape=shape)
    starts = range(0, len(views), _BATCH)
    with tqdm(total=shape[0] * len(starts), desc="features", leave=False) as bar:
        for of_view, images in zip(features, views.images, strict=True):
            for start in starts:
                part = torch.from_numpy(numpy.array(images[start : start + _BATCH]))
                of_view[start : start + _BATCH] = computed(part).cpu().numpy()
                bar.update()
    features.flush()
    del features
    partial.replace(path)
