"""The process that a run is in: others beside it, signals, seeds, files, packages."""

from attn_surgery.finetune.process.checkpoints import (
    Progress,
    check_identity,
    load_checkpoint,
    read_json,
    save_checkpoint,
    write_json,
    write_weights,
)
from attn_surgery.finetune.process.distributed import read_by_first, share_buffers
from attn_surgery.finetune.process.environment import environment
from attn_surgery.finetune.process.lock import alone_in
from attn_surgery.finetune.process.optional_packages import need
from attn_surgery.finetune.process.seeds import derived, seed_all, seed_cpu
from attn_surgery.finetune.process.signals import Interrupted, Wish
from attn_surgery.finetune.process.synchronized_norms import synchronized_norms

__all__ = [
    "Interrupted",
    "Progress",
    "Wish",
    "alone_in",
    "check_identity",
    "derived",
    "environment",
    "load_checkpoint",
    "need",
    "read_by_first",
    "read_json",
    "save_checkpoint",
    "seed_all",
    "seed_cpu",
    "share_buffers",
    "synchronized_norms",
    "write_json",
    "write_weights",
]
