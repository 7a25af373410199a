"""One small step of all that a recipe is going to do, so that what cannot be done ends early."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.evaluation import evaluating
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.recipe import HOST, Stage
from attn_surgery.finetune.tasks import Task, with_teacher
from attn_surgery.finetune.training import (
    choose_trained,
    find_prefix,
    keep_statistics,
    make_optimizer,
    make_scheduler,
    teacher_of,
)

IMAGES = 2


def rehearse(context: Context) -> None:
    """Take one step of each stage of each variant, on copies and on two images.

    Raises:
        SurgeryError: A step fails, or the output does not fit the classes.
    """
    recipe, task, accelerator, classes = (
        context.recipe,
        context.task,
        context.accelerator,
        context.splits.classes,
    )
    own_batch, device = context.loading.batch_size // context.loading.processes, accelerator.device
    train, host = context.splits.train, context.fresh_host(0)
    places = [(i % len(train), i) for i in range(min(IMAGES, own_batch))]
    batch = context.on_device(task.collate([train[place] for place in places]))
    updates = max(1, len(train) // context.loading.batch_size)
    for variant in (*([HOST] if recipe.pretraining else []), *recipe.variants):
        model = operated(recipe, variant, 0, host).to(device)
        with _told(variant), evaluating(model):
            task.check_output(model, batch, classes)
        for place, stage in recipe.stages_of(variant):
            with _told(f"{variant}, {place}"):
                own = copy.deepcopy(model).train()
                choose_trained(own, stage)
                keep_statistics(own, stage, context.norm_batch)
                if recipe.data.prefix and len(places) > 1:
                    with accelerator.autocast():
                        find_prefix(own, batch[0])
                optimizer = make_optimizer(own, stage)
                make_scheduler(optimizer, stage, updates)
                teacher = teacher_of(host).to(device) if stage.distill_weight else None
                with context.training_norms():
                    with accelerator.autocast():
                        loss = _loss(own, stage, task, teacher, batch, classes)
                    loss.backward()
                optimizer.step()


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Say of an error where it was."""
    try:
        yield
    except SurgeryError as error:
        raise SurgeryError(f"{where}: {error}") from error
    except Exception as error:
        raise SurgeryError(f"{where}: one step was tried, and failed: {one_line(error)}") from error


def _loss(
    model: nn.Module, stage: Stage, task: Task, teacher: nn.Module | None, batch: Any, classes: int
) -> Tensor:
    loss = task.loss(stage, classes)
    if teacher is None:
        return loss(model, batch)
    return with_teacher(loss, task, stage, teacher)(model, (batch, None))
