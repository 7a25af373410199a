"""What a recipe names but does not hold: its data, a checkpoint, plans; told by digests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data import Splits
from attn_surgery.finetune.recipe import HOST, Recipe
from attn_surgery.surgery import digest, inserted

PLAN = ".json"


def contents_of(recipe: Recipe, splits: Splits) -> dict[str, str]:
    """Return a digest of everything that decides the weights of runs and is no part of the recipe.

    Of images that is how many there are, their classes and, in folders, their names: wherever the
    folders are, and whatever the files hold.

    Raises:
        SurgeryError: A file cannot be read.
    """
    named = {"train": splits.train, "val": splits.val, "unlabelled": splits.unlabelled}
    found = {f"data.{name}": _of_images(each) for name, each in named.items() if each is not None}
    if recipe.host.checkpoint:
        found["host.checkpoint"] = _of_file(recipe.host.checkpoint)
    plans = [name for name in recipe.surgery.attention if name.endswith(PLAN)]
    return {**found, **{name: _of_file(name) for name in plans}}


def of_variant(contents: dict[str, str], recipe: Recipe, variant: str) -> dict[str, str]:
    """Return those that decide the weights of a variant."""
    others = set(recipe.surgery.attention) - {variant}
    untaught = {"data.unlabelled"} if variant == HOST else set()
    return {key: value for key, value in contents.items() if key not in others | untaught}


def of_frozen(model: nn.Module) -> dict[str, str]:
    """Return those of a model's parameters that do not train, and of its host's buffers."""
    attention = tuple(f"{path}." for path in inserted(model))
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    buffers = [each for each in model.named_buffers() if not each[0].startswith(attention)]
    return {name: digest(value) for name, value in (*frozen, *buffers)}


def _of_images(split: Any) -> str:
    source = split.source
    folder = os.path.commonpath(source.names) if source.names else ""
    names = [name[len(folder) :] for name in source.names]
    told = [len(source), source.classes, dict(source.class_to_idx), names]
    return _digest(json.dumps(told).encode())


def _of_file(name: str) -> str:
    try:
        return _digest(Path(name).read_bytes())
    except OSError as error:
        raise SurgeryError(f"cannot read {name}: {one_line(error)}") from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
