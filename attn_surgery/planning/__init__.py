"""planning."""

from attn_surgery.planning.decision import Cut, Decision, decide
from attn_surgery.planning.request import Attention, Chosen, One, Request, Where, parse_attention
from attn_surgery.planning.sites import Assignment, Plan, Site
from attn_surgery.planning.where import Choice, every, last_of_stage, matching, min_channels, stage

__all__ = [
    "Assignment",
    "Attention",
    "Choice",
    "Chosen",
    "Cut",
    "Decision",
    "One",
    "Plan",
    "Request",
    "Site",
    "Where",
    "decide",
    "every",
    "last_of_stage",
    "matching",
    "min_channels",
    "parse_attention",
    "stage",
]
