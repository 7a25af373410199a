"""Which sites matter: what a loss says of each, what each costs, and a plan under a budget."""

from attn_surgery.suggesting.budget import check_budget
from attn_surgery.suggesting.suggest import suggest
from attn_surgery.suggesting.suggestion import SiteScore, Suggestion

__all__ = ["SiteScore", "Suggestion", "check_budget", "suggest"]
