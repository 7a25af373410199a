"""What is to be done: from what the user asks for to a decision.

A `Request` is checked, the places are found, and for each one it is decided whether it is cut, by
which method, and what for: all is tried, nothing is changed. `decide` hands on a `Decision`: the
`Plan` that the user sees, and each `Cut` with all that carrying it out needs.
"""

from attn_surgery.planning.decision import Cut, Decision, decide
from attn_surgery.planning.request import Attention, Chosen, One, Request, Where, parse_attention
from attn_surgery.planning.sites import Assignment, Plan, Site, runs
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
    "runs",
    "stage",
]
