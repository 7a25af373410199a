"""From a recipe's data to batches."""

from attn_surgery.finetune.data.batches import (
    Loading,
    Prepared,
    Splits,
    classification_transforms,
    open_data,
    train_batches,
    val_batches,
)
from attn_surgery.finetune.data.datasets import as_mode

__all__ = [
    "Loading",
    "Prepared",
    "Splits",
    "as_mode",
    "classification_transforms",
    "open_data",
    "train_batches",
    "val_batches",
]
