"""Batches: which images, in which order, through which transforms, in which process.

The order of an epoch is a function of (seed, stage, epoch), what chance does to one image of
(seed, stage, epoch, image). Each process takes its part of every batch, so that several processes
see together what one would see alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data.source import Source
from attn_surgery.finetune.process import seed_cpu

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
    return loaded(dataset, loading, [[(i, int(seeds[i])) for i in part] for part in parts])


def val_batches(dataset: Dataset[Any], loading: Loading) -> Iterator[Any]:
    """Return this process's part of all images, in order, each once."""
    mine = range(loading.rank, len(dataset), loading.processes)  # type: ignore[arg-type]
    own = max(1, loading.batch_size // loading.processes)
    return loaded(
        dataset, loading, [[(i, i) for i in mine[k : k + own]] for k in range(0, len(mine), own)]
    )


def loaded(dataset: Dataset[Any], loading: Loading, parts: list[list[Place]]) -> Iterator[Any]:
    """Yield a batch of the samples at each list of places.

    Raises:
        SurgeryError: An image cannot be read, or a worker failed.
    """
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
