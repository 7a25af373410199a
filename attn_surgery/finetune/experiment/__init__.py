"""An experiment: variants and seeds, each a run of all stages, from one start."""

from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.dry_run import rehearse
from attn_surgery.finetune.experiment.experiment import (
    ENVIRONMENT,
    host_with_head,
    run_experiment,
)
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.experiment.variants import surgery_of

__all__ = [
    "ENVIRONMENT",
    "Context",
    "host_with_head",
    "rehearse",
    "remeasure",
    "run_experiment",
    "surgery_of",
]
