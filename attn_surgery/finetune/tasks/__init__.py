"""What is learned: the loss of a batch and the score over a split, for each task."""

from attn_surgery.finetune.tasks.by_name import TASKS
from attn_surgery.finetune.tasks.classification import Loss, Metrics, Task, with_teacher
from attn_surgery.finetune.tasks.losses import distillation_loss
from attn_surgery.finetune.tasks.units import PERCENT, Unit, unit_of

__all__ = [
    "PERCENT",
    "TASKS",
    "Loss",
    "Metrics",
    "Task",
    "Unit",
    "distillation_loss",
    "unit_of",
    "with_teacher",
]
