"""One stage of training: what trains and how fast, and what of the host stays as it is."""

from attn_surgery.finetune.training.live_optimizer import update_optimizer
from attn_surgery.finetune.training.parameter_groups import (
    freeze,
    freeze_norm_statistics,
    param_groups,
    thaw_norm_statistics,
)
from attn_surgery.finetune.training.prefix import Prefix, find_prefix
from attn_surgery.finetune.training.stage import (
    Training,
    make_optimizer,
    make_scheduler,
    set_up,
    take_down,
    teacher_of,
)
from attn_surgery.finetune.training.trained import (
    choose_trained,
    keep_statistics,
    trained_parameters,
)

__all__ = [
    "Prefix",
    "Training",
    "choose_trained",
    "find_prefix",
    "freeze",
    "freeze_norm_statistics",
    "keep_statistics",
    "make_optimizer",
    "make_scheduler",
    "param_groups",
    "set_up",
    "take_down",
    "teacher_of",
    "thaw_norm_statistics",
    "trained_parameters",
    "update_optimizer",
]
