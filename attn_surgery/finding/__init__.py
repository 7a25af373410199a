"""finding."""

from attn_surgery.finding.positions import OUTPUT, POSITIONS
from attn_surgery.finding.spots import ELSEWHERE, Spot, Step, path_below
from attn_surgery.finding.survey import Finding, Survey, survey

__all__ = [
    "ELSEWHERE",
    "OUTPUT",
    "POSITIONS",
    "Finding",
    "Spot",
    "Step",
    "Survey",
    "path_below",
    "survey",
]
