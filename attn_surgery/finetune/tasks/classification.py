"""What is learned: the loss of a batch, and the score over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import classification_transforms
from attn_surgery.finetune.recipe import Data, Stage
from attn_surgery.finetune.tasks.losses import distillation_loss

Metrics = dict[str, float]
Model = Callable[..., Any]
Loss = Callable[[Model, Any], Tensor]
"""Of a model on a batch."""


class Task(Protocol):
    """A kind of learning.

    Attributes:
        score: The metric that tells how good a model is; more is better.
    """

    score: str

    def transforms(self, data: Data, config: dict[str, Any], train: bool) -> Any:
        """Return the transform of image and target."""

    def collate(self, samples: list[Any]) -> Any:
        """Make a batch of samples."""

    def loss(self, stage: Stage, classes: int) -> Loss:
        """Return what gives the loss of a model on a batch, in training mode."""
        ...

    def logits(self, model: Model, images: Any) -> Tensor:
        """Return a model's logits ``(N, classes)`` in training mode, for distillation."""
        ...

    def check_output(self, model: Model, batch: Any, classes: int) -> None:
        """Refuse a model, in evaluation mode, whose output does not fit the classes.

        Raises:
            SurgeryError: It does not.
        """

    def measure(
        self, model: nn.Module, batches: Iterable[Any], classes: int, accelerator: Any
    ) -> Metrics:
        """Measure a model, in evaluation mode, over the batches of all processes."""
        ...


class Classification:
    """One class for each image; the score is the share of images whose class is told."""

    score = "accuracy"
    transforms = staticmethod(classification_transforms)

    def collate(self, samples: list[Any]) -> Any:
        """Stack images and classes."""
        return torch.utils.data.default_collate(samples)

    def loss(self, stage: Stage, classes: int) -> Loss:
        """Return the cross entropy, with what the stage does to labels and images."""
        if stage.mixup or stage.cutmix:
            mix: Any = Mixup(
                stage.mixup,
                stage.cutmix,
                label_smoothing=stage.label_smoothing,
                num_classes=classes,
            )
            soft = SoftTargetCrossEntropy()
            return lambda model, batch: _mixed(model, batch, mix, soft)
        smooth = stage.label_smoothing
        hard = LabelSmoothingCrossEntropy(smooth) if smooth else nn.CrossEntropyLoss()
        return lambda model, batch: hard(model(batch[0]), batch[1])

    def logits(self, model: Model, images: Any) -> Tensor:
        """Return the model's output."""
        return model(images)

    def check_output(self, model: Model, batch: Any, classes: int) -> None:
        """Refuse an output that is not ``(N, classes)``.

        Raises:
            SurgeryError: It is not.
        """
        images, _ = batch
        if (shape := tuple(model(images).shape)) != (len(images), classes):
            raise SurgeryError(
                f"the model's output is {shape} for {len(images)} images of {classes} classes; "
                "give host.options that fit its head, or a model whose head is its last linear "
                "layer"
            )

    def measure(
        self, model: nn.Module, batches: Iterable[Any], classes: int, accelerator: Any
    ) -> Metrics:
        """Return accuracy and mean cross entropy."""
        sums = torch.zeros(3, dtype=torch.float64)
        for images, labels in batches:
            images, labels = (each.to(accelerator.device) for each in (images, labels))
            logits = model(images).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            sums += torch.stack([correct, loss, loss.new_tensor(len(labels))]).cpu().double()
        correct, loss, count = total(sums, accelerator).tolist()
        return {"accuracy": correct / count, "loss": loss / count, "images": count}


def _mixed(model: Model, batch: Any, mix: Any, soft: nn.Module) -> Tensor:
    images, targets = mix(batch[0].clone(), batch[1])
    return soft(model(images), targets)


def total(sums: Tensor, accelerator: Any) -> Tensor:
    """Return the sums over all processes, on the CPU."""
    place = accelerator.device
    if place.type == "mps":  # it has no double precision
        return sums
    return accelerator.reduce(sums.to(place), "sum").cpu()


def with_teacher(loss: Loss, task: Task, stage: Stage, teacher: nn.Module) -> Loss:
    """Add the distance to an untouched host's output, on unlabelled images too.

    Args:
        loss: Of a model on a batch of labelled images.
        task: What is learned.
        stage: Weight and temperature.
        teacher: The host, in evaluation mode.

    Returns:
        A loss of a model on ``(labelled batch, unlabelled images or None)``.
    """

    def added(model: Model, batch: Any) -> Tensor:
        labelled, unlabelled = batch
        seen: list[tuple[Tensor, Tensor]] = []

        def student(images: Tensor) -> Tensor:
            # One forward for both kinds: DDP allows no more of them before a backward.
            both = images if unlabelled is None else torch.cat([images, unlabelled])
            with torch.no_grad():
                wanted = task.logits(teacher, both)
            seen.append((task.logits(model, both), wanted))
            return seen[0][0][: len(images)]

        own = loss(student, labelled)
        distance = distillation_loss(*seen[0], stage.distill_temperature)
        return own + stage.distill_weight * distance

    return added
