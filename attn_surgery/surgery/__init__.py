"""surgery."""

from attn_surgery.surgery.saving import load, save
from attn_surgery.surgery.verbs import apply, inserted, plan, remove

__all__ = ["apply", "inserted", "load", "plan", "remove", "save"]
