"""finetune.tasks."""

from attn_surgery.finetune.tasks.by_name import KINDS
from attn_surgery.finetune.tasks.classification import Loss, Metrics, Task, with_teacher
from attn_surgery.finetune.tasks.losses import distillation_loss

__all__ = ["KINDS", "Loss", "Metrics", "Task", "distillation_loss", "with_teacher"]
