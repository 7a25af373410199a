"""The kinds of learning that a recipe can name."""

from __future__ import annotations

from attn_surgery.finetune.dense import Detection, Segmentation
from attn_surgery.finetune.tasks import Classification, Task

KINDS: dict[str, Task] = {
    "classification": Classification(),
    "detection": Detection(),
    "segmentation": Segmentation(),
}
