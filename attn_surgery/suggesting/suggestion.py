"""What is suggested: a score and the costs of each site, and the plan that a budget admits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from attn_surgery.planning import Plan, Site


@dataclass(frozen=True)
class SiteScore:
    """What one site promises, and what its attention costs.

    Attributes:
        site: The site.
        score: What there is to gain here, as `attn_surgery.suggesting.score` tells it; 0 where
            the loss says no more than noise.
        params: Parameters added.
        bytes: Of them, in the dtype that they have.
        macs: Multiply-adds added for one input.
        latency_ms: Median time of the attention on the first batch's maps; None where no budget
            asked for it.
        is_chosen: Whether the plan has it.
    """

    site: Site
    score: float
    params: int
    bytes: int
    macs: int
    latency_ms: float | None = None
    is_chosen: bool = False


@dataclass(frozen=True)
class Suggestion:
    """Which sites of a host are worth an attention.

    Attributes:
        scores: Of every site, in forward order.
        plan: Those that were chosen, for `attn_surgery.apply`; the others are among its
            ``skipped``, with the reason.
        batches: How many were looked at.
        latency_ms: Of the host on the first batch; None where no budget asked for it.
    """

    scores: tuple[SiteScore, ...]
    plan: Plan
    batches: int
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {
            "scores": [asdict(each) for each in self.scores],
            "plan": self.plan.to_dict(),
            "batches": self.batches,
            "latency_ms": self.latency_ms,
        }

    def __str__(self) -> str:
        timed = any(each.latency_ms is not None for each in self.scores)
        whole = sum(each.score for each in self.scores) or 1.0
        heads = ["", "block", "after", "channels", "score (%)", "params", "bytes", "MACs"]
        rows = [
            [
                "x" if each.is_chosen else "",
                each.site.block or "(the host)",
                each.site.after,
                each.site.channels,
                f"{100 * each.score / whole:.1f}",
                f"{each.params:,}",
                f"{each.bytes:,}",
                f"{each.macs:,}",
                *([f"{each.latency_ms:.3f}"] if timed else []),
            ]
            for each in self.scores
        ]
        chosen = [each for each in self.scores if each.is_chosen]
        share = 100 * sum(each.score for each in chosen) / whole
        table = tabulate(rows, heads + ["ms"] * timed, disable_numparse=True)
        return (
            f"{table}\n\n{len(chosen)} of {len(self.scores)} sites (x) hold {share:.0f} % of the "
            f"score over {self.batches} batches"
        )
