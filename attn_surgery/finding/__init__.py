"""What a residual block is, and where its places for attention are.

`survey` follows a model's modules and hands on a `Finding` for each place: an addition is read
(additions, shortcuts), held to be a residual block or refused with a reason (residual_blocks,
refusals), looked at for attention that it holds (gates, existing_attention), and its place at the
asked position (positions) is told as the block's own forward sees it (spots).
"""

from attn_surgery.finding.places import Finding, places_on
from attn_surgery.finding.positions import OUTPUT, POSITIONS
from attn_surgery.finding.spots import ELSEWHERE, Spot, Step, path_below
from attn_surgery.finding.survey import Survey, survey

__all__ = [
    "ELSEWHERE",
    "OUTPUT",
    "POSITIONS",
    "Finding",
    "Spot",
    "Step",
    "Survey",
    "path_below",
    "places_on",
    "survey",
]
