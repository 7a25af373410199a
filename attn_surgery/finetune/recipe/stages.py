"""``[[stages]]`` and ``[[pretraining]]``: what trains, for how long, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """``[[stages]]`` or ``[[pretraining]]``: some epochs of training.

    Attributes:
        trains: ``all``; ``attention``; or patterns over the names of the host's parameters, and
            the words ``head`` and ``norms`` (weights and biases of the host's norms), besides which
            the attention trains. The control ``same``, which has none, trains everything in an
            ``attention`` stage: the same number of steps, at ``lr``, which therefore has to be one
            that is good for the host. What the host itself does not train (``requires_grad`` is
            false) stays as it is.
        freezes: Patterns over the names of the host's parameters that do not train all the same;
            new attention within is not meant, unless ``freezes_attention``.
        freezes_attention: Whether ``freezes`` means new attention, too.
        epochs: How many times the training images are seen.
        optimizer: One that ``timm.optim`` knows.
        lr: Learning rate of the host.
        attention_lr_scale: How many times the host's learning rate the attention's is.
        head_lr_scale: The same for the host's head.
        norms_lr_scale: The same for the weights and biases of the host's norms.
        weight_decay: Of weights; biases, norms and the scalars of gates have none.
        optimizer_options: More keywords for the optimizer.
        schedule: ``cosine``, ``poly``, ``tanh``, ``step``, ``multistep`` of ``timm.scheduler``, or
            ``constant``.
        schedule_options: More keywords of ``timm.scheduler.create_scheduler_v2``.
        warmup_epochs: Epochs in which the learning rates rise from 0; part of ``epochs``.
        norm_stats: The host's running statistics: ``live``, ``frozen``, or ``auto``: live where
            they are those of 16 images or more, of a process's part of a batch (of several
            processes, the first one's are kept) or, with ``sync_batchnorm``, of all of it. Where
            nothing of a norm trains they are frozen, and with ``auto`` where it trains by the word
            ``norms`` alone, in a host that is frozen otherwise. Those of the attention are live.
        label_smoothing: From 0 to 1.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        ema: Decay of the moving average of the weights, which is then what is measured and kept;
            0 for none.
        clip_grad: Largest norm of the gradient; 0 for any.
        accumulate: Batches for one step of the optimizer.
        distill_weight: Of the loss against the untouched host's output; 0 for none.
        distill_temperature: What logits are divided by there.
    """

    trains: tuple[str, ...] = ("all",)
    freezes: tuple[str, ...] = ()
    freezes_attention: bool = False
    epochs: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    attention_lr_scale: float = 10.0
    head_lr_scale: float = 1.0
    norms_lr_scale: float = 1.0
    weight_decay: float = 0.01
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    warmup_epochs: float = 0.0
    norm_stats: str = "auto"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    @property
    def is_for_attention_alone(self) -> bool:
        """Whether nothing of the host trains."""
        return set(self.trains) == {"attention"}

    @property
    def freezes_host(self) -> bool:
        """Whether nothing of the host trains but its head, and weights and biases of its norms."""
        return set(self.trains) <= {"attention", "head", "norms"}

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the weights; keys that are younger than runs, only where they do."""
        return without(_YOUNGER, dataclasses.asdict(self))


_YOUNGER = {"head_lr_scale": 1.0, "norms_lr_scale": 1.0}
"""Keys that were not there when runs began that shall go on, and what they meant then."""


def without(younger: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the keys that are younger than runs where they mean what was so before.

    Example:
        >>> without({"views": 0}, {"views": 0, "limit": 0})
        {'limit': 0}
    """
    return {key: value for key, value in told.items() if value != younger.get(key)}
