"""One variant against another over seeds: differences, intervals, and what chance may do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from attn_surgery.finetune.process import need
from attn_surgery.finetune.recipe import CONTROL
from attn_surgery.finetune.tasks import PERCENT, Unit

CONFIDENCE = 0.95
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, and its 95 % interval by Student's t (None for one pair).

    Fewer than three pairs say nothing of chance, whatever the interval.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """Say what may be concluded."""
        if self.low is None or self.high is None or self.pairs < FEWEST_PAIRS:
            return f"is not judged: {self.pairs} of the {FEWEST_PAIRS} seeds that it takes at least"
        if self.low > 0:
            return "beats its control"
        if self.high < 0:
            return "is worse than its control"
        return "does not beat its control: the interval holds 0"


@dataclass(frozen=True)
class Comparison:
    """An attention beside a control.

    Attributes:
        attention: The attention.
        control: The control, as the variant is called.
        difference: What the attention scores more, seed by seed.
        p: Of the paired t-test, two-sided: how often chance alone differs as much; None for one
            pair.
        holm: p, corrected for all comparisons of an outcome (Holm 1979).
        comparisons: How many these are.
    """

    attention: str
    control: str
    difference: Difference
    p: float | None
    holm: float | None
    comparisons: int

    @property
    def verdict(self) -> str:
        """Say what may be concluded: where there are several comparisons, by the corrected p."""
        own = self.difference.verdict
        if self.control != CONTROL:
            own = own.replace("its control", self.control)
        p, holm = self.p, self.holm
        if p is None or holm is None or self.difference.pairs < FEWEST_PAIRS:
            return own
        level = 1 - CONFIDENCE
        if p < level <= holm:
            return (
                f"is not told from {self.control}: p = {probability(p)}, but "
                f"{probability(holm)} corrected for {self.comparisons} comparisons"
            )
        return own

    def __str__(self) -> str:
        return f"{self.attention} {self.verdict}"


def compare(
    scores: Mapping[str, Sequence[float]], attentions: Iterable[str], controls: Sequence[str]
) -> list[Comparison]:
    """Compare each attention with each control.

    Args:
        scores: For each variant, the scores of its seeds.
        attentions: What is compared.
        controls: With what.

    Example:
        >>> scores = {"se": [0.92, 0.93, 0.95], "control": [0.9, 0.92, 0.93]}
        >>> (told,) = compare(scores, ["se"], ["control"])
        >>> round(told.difference.mean, 4), round(told.p, 4), told.p == told.holm
        (0.0167, 0.0377, True)
    """
    pairs = [(attention, control) for attention in attentions for control in controls]
    values = [p_value(scores[attention], scores[control]) for attention, control in pairs]
    tested = [value for value in values if value is not None]
    corrected = iter(holm(tested))
    return [
        Comparison(
            attention,
            control,
            paired(scores[attention], scores[control]),
            p,
            None if p is None else next(corrected),
            len(tested),
        )
        for (attention, control), p in zip(pairs, values, strict=True)
    ]


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the mean of ``a - b``, pair by pair, with its confidence interval.

    Example:
        >>> difference = paired([0.92, 0.93, 0.94], [0.91, 0.92, 0.91])
        >>> round(difference.mean, 4), round(difference.low, 4), round(difference.high, 4)
        (0.0167, -0.012, 0.0454)
        >>> difference.verdict
        'does not beat its control: the interval holds 0'
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return Difference(mean, None, None, n)
    stats: Any = need("scipy.stats", "scipy")
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - float(reach), mean + float(reach), n)


def p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return p of the paired t-test, two-sided; None for fewer than two pairs.

    Example:
        >>> round(p_value([0.92, 0.93, 0.94], [0.91, 0.92, 0.91]), 4)
        0.1296
        >>> p_value([0.9, 0.9], [0.9, 0.9])
        1.0
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    if n < 2:
        return None
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n)
    if not error:  # every seed differs by as much
        return 0.0 if mean else 1.0
    stats: Any = need("scipy.stats", "scipy")
    return float(2 * stats.t.sf(abs(mean / error), n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, the step-down form of Bonferroni's bound).

    Example:
        >>> [round(each, 4) for each in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order, corrected, least = sorted(range(len(values)), key=values.__getitem__), {}, 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = least
    return [corrected[index] for index in range(len(values))]


# In words


def comparison_table(comparisons: Sequence[Comparison], style: str, unit: Unit = PERCENT) -> str:
    """Return the table of all comparisons in one of tabulate's styles; "" where there are none."""
    if not comparisons:
        return ""
    rows = [
        [
            each.attention,
            each.control,
            str(each.difference.pairs),
            interval(each.difference, unit),
            probability(each.p),
            probability(each.holm),
        ]
        for each in comparisons
    ]
    tested = comparisons[0].comparisons
    corrected = f"p (Holm, of {tested})" if tested else "p (Holm)"
    heads = ["attention", "beside", "seeds", "difference (95 %)", "p", corrected]
    return tabulate(rows, heads, style, disable_numparse=True)


def interval(difference: Difference, unit: Unit = PERCENT) -> str:
    """Write a difference with its interval.

    Example:
        >>> interval(Difference(0.004, -0.001, 0.009, pairs=5))
        '+0.40 (-0.10 to +0.90)'
    """
    if difference.low is None or difference.high is None:
        return unit.write(difference.mean, "+.2f")
    mean, low, high = (
        unit.write(each, "+.2f") for each in (difference.mean, difference.low, difference.high)
    )
    return f"{mean} ({low} to {high})"


def probability(p: float | None) -> str:
    """Write a p-value.

    Example:
        >>> [probability(p) for p in (0.04321, 0.00001, None)]
        ['0.043', '< 0.0001', '']
    """
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
