"""What is learned: the loss of a batch and the score over a split, for each task."""

from attn_surgery.finetune.tasks.by_name import TASKS
from attn_surgery.finetune.tasks.classification import Loss, Metrics, Task, with_teacher
from attn_surgery.finetune.tasks.losses import distillation_loss

__all__ = ["TASKS", "Loss", "Metrics", "Task", "distillation_loss", "with_teacher"]
