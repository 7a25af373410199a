"""The tasks that a recipe can name."""

from __future__ import annotations

from attn_surgery.finetune.tasks.classification import Classification, Task
from attn_surgery.finetune.tasks.dense import Detection, Segmentation
from attn_surgery.finetune.tasks.restoration import Restoration

TASKS: dict[str, Task] = {
    "classification": Classification(),
    "detection": Detection(),
    "restoration": Restoration(),
    "segmentation": Segmentation(),
}
