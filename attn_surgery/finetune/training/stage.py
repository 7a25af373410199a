"""What one stage sets up: what trains, the optimizer, the schedule, the average, the loss."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.recipe import Stage
from attn_surgery.finetune.tasks import Loss, Task, with_teacher
from attn_surgery.finetune.training.held_buffers import HeldBuffers
from attn_surgery.finetune.training.parameter_groups import param_groups, thaw_norm_statistics
from attn_surgery.finetune.training.prefix import Prefix
from attn_surgery.finetune.training.trained import choose_trained, holds_host, keep_statistics


@dataclass
class Training:
    """A stage, ready to run.

    Attributes:
        stage: What the recipe says.
        bare: The model.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        scheduler: timm's scheduler.
        ema: The average of the weights, or None.
        loss: Of a model on a batch.
        updates: Steps of the optimizer in an epoch.
        constant: Parameters that did not train before.
        former: Attributes that Accelerate set anew, and what they were before, if anything.
        held: The host's buffers, where the host is frozen.
        prefix: What is not computed again, as batches hold what comes of it; None for images.
    """

    stage: Stage
    bare: nn.Module
    model: nn.Module
    optimizer: Any
    scheduler: Any
    ema: ModelEmaV3 | None
    loss: Loss
    updates: int
    constant: list[nn.Parameter]
    former: dict[str, Any]
    held: HeldBuffers | None = None
    prefix: Prefix | None = None

    @property
    def result(self) -> nn.Module:
        """The model that is measured and kept."""
        return self.bare if self.ema is None else self.ema.module

    def step(self, batches: list[Any], accelerator: Any) -> Tensor:
        """Take one step of the optimizer on some batches; return their mean loss."""
        loss = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(batches, 1):
            with _synchronized(self.model, accelerator, i == len(batches)):
                with accelerator.autocast(), self._given():
                    part = self.loss(self.model, batch) / len(batches)
                accelerator.backward(part)
            loss += part.detach()
        if self.stage.clip_grad:
            accelerator.clip_grad_norm_(self.model.parameters(), self.stage.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.held is not None:
            self.held.put_back()
        return loss

    def stepped(self, update: int) -> None:
        """Bring rates and average to after so many steps of the stage."""
        self.scheduler.step_update(update)
        if self.ema is not None:
            self.ema.update(self.bare)

    def _given(self) -> Any:
        return contextlib.nullcontext() if self.prefix is None else self.prefix.given(self.bare)


def _synchronized(model: nn.Module, accelerator: Any, last: bool) -> Any:
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def set_up(
    model: nn.Module,
    stage: Stage,
    task: Task,
    teacher: nn.Module | None,
    accelerator: Any,
    *,
    classes: int,
    updates: int,
    norm_batch: int,
) -> Training:
    """Prepare a stage.

    Args:
        model: What trains.
        stage: How.
        task: What is learned.
        teacher: The untouched host, where the stage distills.
        accelerator: Accelerate's.
        classes: How many classes there are.
        updates: Steps in an epoch.
        norm_batch: Images in a batch that a norm sees.

    Raises:
        SurgeryError: A pattern selects nothing, or the optimizer cannot be made.
    """
    model.to(accelerator.device).train()
    constant = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    choose_trained(model, stage)
    keep_statistics(model, stage, norm_batch)
    optimizer = make_optimizer(model, stage)
    scheduler = make_scheduler(optimizer, stage, updates)
    ema = ModelEmaV3(model, decay=stage.ema) if stage.ema else None
    loss = task.loss(stage, classes)
    if teacher is not None:
        loss = with_teacher(loss, task, stage, teacher.to(accelerator.device))
    before = dict(vars(model))
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    former = {k: before.get(k) for k, v in vars(model).items() if v is not before.get(k)}
    held = HeldBuffers(model) if holds_host(model, stage) else None
    return Training(
        stage,
        model,
        prepared,
        prepared_optimizer,
        scheduler,
        ema,
        loss,
        updates,
        constant,
        former,
        held,
    )


def take_down(training: Training, accelerator: Any) -> None:
    """Leave the model as one that any stage can begin with."""
    # Accelerate wraps the forward for mixed precision, and a model that it marked not once more.
    attributes = vars(training.bare)
    for name, former in training.former.items():
        del attributes[name]
        if former is not None:
            attributes[name] = former
    accelerator.free_memory()
    thaw_norm_statistics(training.bare)
    training.bare.requires_grad_(True)
    for parameter in training.constant:
        parameter.requires_grad_(False)


# What it trains by


def make_optimizer(model: nn.Module, stage: Stage) -> Any:
    """Make timm's optimizer of a stage.

    Raises:
        SurgeryError: There is no such optimizer, or it does not take its options.
    """
    groups = param_groups(
        model,
        stage.lr,
        stage.attention_lr_scale,
        stage.weight_decay,
        head_lr_scale=stage.head_lr_scale,
        norms_lr_scale=stage.norms_lr_scale,
    )
    try:
        return create_optimizer_v2(
            groups, opt=stage.optimizer, lr=stage.lr, **stage.optimizer_options
        )
    except Exception as error:
        raise SurgeryError(f"optimizer {stage.optimizer!r}: {one_line(error)}") from error


def make_scheduler(optimizer: Any, stage: Stage, updates: int) -> Any:
    """Make timm's scheduler of a stage, which steps with every step of the optimizer.

    Raises:
        SurgeryError: It does not take its options.
    """
    given: dict[str, Any] = {"sched": stage.schedule}
    if stage.schedule == "constant":
        given = {"sched": "step", "decay_epochs": stage.epochs + 1, "decay_rate": 1.0}
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            num_epochs=stage.epochs,
            warmup_epochs=stage.warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=updates,
            **{**given, **stage.schedule_options},
        )
    except Exception as error:
        raise SurgeryError(f"schedule {stage.schedule!r}: {one_line(error)}") from error
    return scheduler


def teacher_of(start: nn.Module) -> nn.Module:
    """Return a frozen copy of the host, in evaluation mode."""
    return copy.deepcopy(start).requires_grad_(False).eval()
