"""finetune.experiment."""

from attn_surgery.finetune.experiment.context import Lab
from attn_surgery.finetune.experiment.experiment import ENVIRONMENT, run_experiment
from attn_surgery.finetune.experiment.rehearsal import rehearse
from attn_surgery.finetune.experiment.remeasuring import remeasure
from attn_surgery.finetune.experiment.variants import surgery_of

__all__ = ["ENVIRONMENT", "Lab", "rehearse", "remeasure", "run_experiment", "surgery_of"]
