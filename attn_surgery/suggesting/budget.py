"""Which sites a budget admits: the most score for what may be spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attn_surgery.errors import SurgeryError, check_choice

BUDGETS = ("sites", "params", "bytes", "macs", "latency")


def check_budget(budget: Mapping[str, float] | None) -> None:
    """Refuse a budget of something else, or of nothing.

    Raises:
        SurgeryError: It is one.
    """
    if not isinstance(budget, Mapping | None):
        raise SurgeryError(f"budget={budget!r} must be a table, such as {{'params': 20_000}}")
    for name, limit in (budget or {}).items():
        check_choice("budget", name, BUDGETS)
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if name == "latency" and not (is_number and limit > 1):
            raise SurgeryError(
                f"budget['latency']={limit!r} must be a ratio to the host's time, as 1.05"
            )
        if not (is_number and limit > 0):
            raise SurgeryError(f"budget[{name!r}]={limit!r} must be a number above 0")


def admitted(
    scores: Sequence[float], costs: Mapping[str, Sequence[float]], limits: Mapping[str, float]
) -> list[int]:
    """Return the sites to take, in order.

    One after the other is taken that promises most for the share of the budget that it needs, as
    long as there is one that promises anything and fits; where a single site that fits promises
    more than all of those, it is taken instead. So the whole promises at least half of what the
    best choice would, for a budget of one thing.

    Args:
        scores: Of each site.
        costs: For each thing that is limited, the cost of each site.
        limits: What all sites together may cost.

    Example:
        >>> admitted([3.0, 2.0, 2.0, 0.0], {"params": [4, 2, 2, 1]}, {"params": 4})
        [1, 2]
        >>> admitted([9.0, 1.0], {"params": [10, 1]}, {"params": 10})
        [0]
    """

    def fits(sites: Sequence[int]) -> bool:
        return all(sum(costs[name][i] for i in sites) <= limit for name, limit in limits.items())

    def worth(site: int) -> float:
        share = max((costs[name][site] / limit for name, limit in limits.items()), default=1.0)
        return scores[site] / share if share else float("inf")

    promising = [site for site, score in enumerate(scores) if score > 0 and fits([site])]
    taken: list[int] = []
    for site in sorted(promising, key=lambda site: -worth(site)):
        if fits([*taken, site]):
            taken.append(site)
    best = max(promising, key=lambda site: scores[site], default=None)
    if best is not None and scores[best] > sum(scores[site] for site in taken):
        taken = [best]
    return sorted(taken)
