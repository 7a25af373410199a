"""Batches: which images, in which order, through which transforms, in which process.

The order of an epoch is a function of (seed, stage, epoch), what chance does to one image of
(seed, stage, epoch, image). Each process takes its part of every batch, so that several processes
see together what one would see alone.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from attn_surgery.errors import SurgeryError, nearest, one_line
from attn_surgery.finetune.data.datasets import Source, as_mode, open_source, open_unlabelled
from attn_surgery.finetune.process import seed_cpu
from attn_surgery.finetune.recipe import Data

Place = tuple[int, int]
"""The number of an image, and the seed for what chance does to it."""


class Prepared(Dataset[Any]):
    """A split whose images went through a transform.

    Args:
        source: The split.
        transform: From ``(image, target)`` to what batches are made of.
    """

    def __init__(self, source: Source, transform: Callable[[Any, Any], tuple[Any, Any]]):
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: Place) -> tuple[Any, Any]:
        index, seed = place
        seed_cpu(seed)
        try:
            image, target = self.source.samples[index]
            return self.transform(image, target)
        except Exception as error:
            raise SurgeryError(
                f"cannot read image {self.source.name(index)}: {one_line(error)}"
            ) from error


@dataclass(frozen=True)
class Loading:
    """How batches are put together.

    Attributes:
        batch_size: Of all processes together.
        rank: The number of this process.
        processes: How many there are.
        workers: Who read images for this process; 0 for itself.
        collate: From a list of samples to a batch; None for stacked tensors.
        pinned: Whether batches are to be copied to an accelerator.
    """

    batch_size: int
    rank: int = 0
    processes: int = 1
    workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    pinned: bool = False


def train_batches(
    dataset: Dataset[Any], loading: Loading, seed: int, skip: int = 0
) -> Iterator[Any]:
    """Return this process's part of the batches of an epoch; a rest smaller than one is left out.

    Args:
        dataset: What is learned.
        loading: How batches are put together.
        seed: Of the epoch.
        skip: How many batches to begin after.
    """
    size = len(dataset)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator, device="cpu")
    seeds = torch.randint(2**62, (size,), generator=generator, device="cpu")
    whole = size // loading.batch_size
    own = loading.batch_size // loading.processes
    starts = [i * loading.batch_size + loading.rank * own for i in range(skip, whole)]
    parts = [order[start : start + own].tolist() for start in starts]
    return _loaded(dataset, loading, [[(i, int(seeds[i])) for i in part] for part in parts])


def val_batches(dataset: Dataset[Any], loading: Loading) -> Iterator[Any]:
    """Return this process's part of all images, in order, each once."""
    mine = range(loading.rank, len(dataset), loading.processes)  # type: ignore[arg-type]
    own = max(1, loading.batch_size // loading.processes)
    return _loaded(
        dataset, loading, [[(i, i) for i in mine[k : k + own]] for k in range(0, len(mine), own)]
    )


def _loaded(dataset: Dataset[Any], loading: Loading, parts: list[list[Place]]) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=parts,  # type: ignore[arg-type]
        num_workers=loading.workers,
        collate_fn=loading.collate,
        worker_init_fn=_obey_parent_alone,
        pin_memory=loading.pinned,
    )
    try:
        yield from loader
        return
    except SurgeryError as error:  # from a worker it comes with the worker's own traceback
        told = str(error).strip().splitlines()[-1].rpartition("SurgeryError: ")[2]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        told = f"{one_line(error)}: more shared memory helps, or data.workers = 0"
    raise SurgeryError(told)  # out here nothing holds the workers any more


def _obey_parent_alone(_: int) -> None:
    """Read on when a signal goes to all processes: the one that trains has to end its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


# What a recipe asks for


@dataclass(frozen=True)
class Splits:
    """What a recipe's data comes to.

    Attributes:
        train: What is learned.
        val: What is measured.
        classes: How many classes there are.
        input_size: ``(C, H, W)`` of an image.
        unlabelled: Images without labels, or None.
    """

    train: Prepared
    val: Prepared
    classes: int
    input_size: tuple[int, int, int]
    unlabelled: Prepared | None = None


Transforms = Callable[[Data, dict[str, Any], bool], Callable[[Any, Any], tuple[Any, Any]]]


def open_data(data: Data, model: nn.Module | None, transforms: Transforms) -> Splits:
    """Open both splits.

    Args:
        data: What the recipe says.
        model: The host, which says what images it wants where the recipe does not.
        transforms: From the recipe, the configuration and whether it is for training to a
            transform of image and target.

    Raises:
        SurgeryError: Something is not there, or not as it should be.
    """
    config = image_config(data, model)
    sources = {train: open_source(data, train=train) for train in (True, False)}
    train, val = (Prepared(sources[each], transforms(data, config, each)) for each in (True, False))
    unlabelled = None
    if data.unlabelled:
        source = open_unlabelled(data.unlabelled)
        unlabelled = Prepared(source, transforms(data, config, True))
    return Splits(train, val, _classes(data, sources), tuple(config["input_size"]), unlabelled)


def _classes(data: Data, sources: Mapping[bool, Source]) -> int:
    """Return how many classes there are, once it is sure that both splits mean the same by them."""
    learned, measured = (sources[train].class_to_idx for train in (True, False))
    if learned and measured and learned != measured:
        name = next(iter(dict(set(learned.items()) ^ set(measured.items()))))
        raise SurgeryError(
            f"{data.name}: class {name!r} is number {learned.get(name)} of {data.train_split!r} "
            f"and {measured.get(name)} of {data.val_split!r}"
        )
    known = sources[True].classes
    if not data.classes and not known:
        raise SurgeryError(f"{data.name} does not say how many classes it has: give data.classes")
    if data.classes and data.classes < known and data.task == "classification":
        raise SurgeryError(f"data.classes={data.classes}, but {data.name} has {known} classes")
    return data.classes or known


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
    try:
        made: Any = create_transform(**{**usual, "is_training": train, **given})
    except Exception as error:
        raise SurgeryError(f"{name}: {one_line(error)}") from error
    return ImageTransform(made, "L" if data.channels == 1 else "RGB")


@dataclass(frozen=True)
class ImageTransform:
    """A transform of the image alone.

    Attributes:
        made: From a PIL image to a tensor.
        mode: PIL's mode.
    """

    made: Callable[[Any], Any]
    mode: str

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        """Transform one image."""
        return self.made(as_mode(image, self.mode)), target
