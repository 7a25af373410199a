"""What all runs of an experiment share: the recipe, the data, the devices, and how to measure."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, is_out_of_memory
from attn_surgery.finetune.data import Loading, Splits, open_data
from attn_surgery.finetune.experiment.checking import check_recipe, check_together
from attn_surgery.finetune.experiment.digests import contents_of
from attn_surgery.finetune.experiment.evaluation import mean_over, measure
from attn_surgery.finetune.hosts import build_host
from attn_surgery.finetune.process import Wish, need, synchronized_norms
from attn_surgery.finetune.recipe import Data, Recipe
from attn_surgery.finetune.tasks import TASKS, Metrics, Task


@dataclass(frozen=True)
class Context:
    """Where an experiment is carried out.

    Attributes:
        recipe: What is wanted.
        task: What is learned.
        splits: The data.
        loading: How batches are put together.
        accelerator: Accelerate's.
        contents: Digests of what the recipe names.
        wish: Whether to stop.
        scaler: The state in which the loss scaler of fp16 begins a run; None where there is none.
    """

    recipe: Recipe
    task: Task
    splits: Splits
    loading: Loading
    accelerator: Any
    contents: dict[str, str] = field(default_factory=dict)
    wish: Wish = field(default_factory=Wish)
    scaler: dict[str, Any] | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Context:
        """Open what a recipe names, and check everything.

        Raises:
            SurgeryError: Something cannot be done.
        """
        check_recipe(recipe)
        for module in ("tensorboard", "matplotlib", "scipy"):
            need(module)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        accelerator = _accelerator(recipe)
        task = TASKS[recipe.data.task]
        plain = build_host(recipe.host, 0, 0, accelerator.device)
        splits = _opened(recipe.data, plain, task, accelerator)
        classes = splits.classes if recipe.data.has_head else 0
        host = build_host(recipe.host, classes, 0, accelerator.device)
        check_together(recipe, plain, host, splits, accelerator.num_processes)
        loading = Loading(
            recipe.data.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            recipe.data.workers,
            task.collate,
            accelerator.device.type != "cpu",
        )
        contents, scaler = contents_of(recipe, splits), accelerator.scaler
        start = None if scaler is None else scaler.state_dict()
        return cls(recipe, task, splits, loading, accelerator, contents, scaler=start)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Take signals as a wish to stop, and tell what helps where the memory is too small.

        Raises:
            SurgeryError: The device has no memory left.
        """
        try:
            with self.wish:
                yield
        except SurgeryError:  # it says already what was being done, and by what
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise SurgeryError(
                f"out of memory on {self.accelerator.device}: lower data.batch_size, and raise "
                "accumulate to make up for it; what was saved is whole"
            ) from error

    @property
    def norm_batch(self) -> int:
        """Images in a batch that a norm sees."""
        size, processes = self.loading.batch_size, self.loading.processes
        return size if self.recipe.sync_batchnorm else size // processes

    def on_device(self, batch: Any) -> Any:
        """Bring a batch to where models are."""
        utils: Any = need("accelerate.utils")
        return utils.send_to_device(batch, self.accelerator.device, non_blocking=True)

    def training_norms(self) -> AbstractContextManager[Any]:
        """Return what a step is taken in, so that norms see as many images."""
        if not self.recipe.sync_batchnorm:
            return contextlib.nullcontext()
        return synchronized_norms(self.accelerator)

    def fresh_host(self, seed: int) -> nn.Module:
        """Build the host of a seed."""
        classes = self.splits.classes if self.recipe.data.has_head else 0
        return build_host(self.recipe.host, classes, seed, self.accelerator.device)

    def measure(self, model: nn.Module) -> Metrics:
        """Measure a model on the split that it does not learn from."""
        measured = functools.partial(
            measure,
            model,
            task=self.task,
            loading=self.loading,
            classes=self.splits.classes,
            accelerator=self.accelerator,
        )
        if not self.splits.domains:
            return measured(self.splits.val)
        return mean_over({name: measured(each) for name, each in self.splits.domains.items()})

    def with_views(self) -> Context:
        """Return the same with the views of images, if the recipe wants some, from their files.

        Raises:
            SurgeryError: They cannot be written or read.
        """
        if not self.recipe.data.views:
            return self
        folder = Path(self.recipe.output, "views")
        with self.accelerator.local_main_process_first():
            splits = self.splits.with_views(self.recipe.data.views, folder)
        return dataclasses.replace(self, splits=splits)


def _accelerator(recipe: Recipe) -> Any:
    accelerate: Any = need("accelerate")
    make = functools.partial(
        accelerate.Accelerator,
        cpu=recipe.device == "cpu",
        mixed_precision=recipe.amp,
        step_scheduler_with_optimizer=False,
    )
    try:
        with contextlib.suppress(ValueError):
            return make()
        # Accelerate holds on to the precision of the recipe before, in a notebook perhaps.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        return make()
    except ValueError as error:
        raise SurgeryError(f"amp={recipe.amp!r}: {error}") from error


def _opened(data: Data, host: nn.Module, task: Task, accelerator: Any) -> Splits:
    """Open the data; one process of each machine fetches what is missing, before the others."""
    with accelerator.local_main_process_first():
        fetches = data.download and accelerator.is_local_main_process
        return open_data(dataclasses.replace(data, download=fetches), host, task.transforms)
