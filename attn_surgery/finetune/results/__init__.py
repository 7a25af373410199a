"""What came of an experiment, and its files."""

from attn_surgery.finetune.results.outcome import Outcome, gather
from attn_surgery.finetune.results.publishing import costs_of, publish

__all__ = ["Outcome", "costs_of", "gather", "publish"]
