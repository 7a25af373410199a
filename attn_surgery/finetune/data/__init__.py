"""From a recipe's data to batches."""

from attn_surgery.finetune.data.batches import (
    Loading,
    Prepared,
    train_batches,
    val_batches,
)
from attn_surgery.finetune.data.domains import DOMAINS, drawn_domain
from attn_surgery.finetune.data.features import features_of
from attn_surgery.finetune.data.source import as_mode, read_image
from attn_surgery.finetune.data.splits import Splits, open_data
from attn_surgery.finetune.data.transforms import classification_transforms
from attn_surgery.finetune.data.views import Views

__all__ = [
    "DOMAINS",
    "Loading",
    "Prepared",
    "Splits",
    "Views",
    "as_mode",
    "classification_transforms",
    "drawn_domain",
    "features_of",
    "open_data",
    "read_image",
    "train_batches",
    "val_batches",
]
