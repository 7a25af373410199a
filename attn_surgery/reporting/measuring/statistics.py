"""Statistics of paired timings: medians, quartiles, and the interval of the median ratio.

All models are timed in turn within each round, so that whatever slows the machine for a while slows
all of them. A variant is compared with the host round by round, and only the ratios are summed up.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
    """One model's times in one run.

    Attributes:
        samples_ms: One time per round.
        median_ms: Their median.
        q1_ms: First quartile.
        q3_ms: Third quartile.
        p90_ms: Nine of ten times are below it.
        p99_ms: 99 of a hundred are; the longest where there are no hundred.
        ratio: Median of the ratios to the host's time in the same round; 1 for the host.
        ratio_low: Lower end of the ratio's 95 % interval.
        ratio_high: Upper end.
        added_ms: Median of the differences from the host's time in the same round.
        peak_bytes: Most memory that the device held for this model; None where it does not count
            it, as the CPU does not.
    """

    samples_ms: tuple[float, ...]
    median_ms: float
    q1_ms: float
    q3_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    added_ms: float
    peak_bytes: int | None = None


def summarise(
    samples_ms: Sequence[float], host_ms: Sequence[float], peak_bytes: int | None = None
) -> Timing:
    """Sum up one model's times, each paired with the host's of the same round.

    Example:
        >>> timing = summarise([2.0, 2.2, 4.0], [1.0, 1.1, 2.0])
        >>> timing.median_ms, timing.ratio, timing.added_ms
        (2.2, 2.0, 1.1)
    """
    pairs = list(zip(samples_ms, host_ms, strict=True))
    ratios = [one / host for one, host in pairs]
    low, high = median_interval(ratios)
    quartiles = statistics.quantiles(samples_ms, n=4) if len(pairs) > 1 else [samples_ms[0]] * 3
    return Timing(
        samples_ms=tuple(samples_ms),
        median_ms=statistics.median(samples_ms),
        q1_ms=quartiles[0],
        q3_ms=quartiles[2],
        p90_ms=percentile(samples_ms, 90),
        p99_ms=percentile(samples_ms, 99),
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        added_ms=statistics.median(one - host for one, host in pairs),
        peak_bytes=peak_bytes,
    )


def added_in_units(timing: Timing, host: Timing, unit: Timing) -> float:
    """Return the median, over the rounds, of the difference to the host as so many units.

    Example:
        >>> host, unit = summarise([1.0, 2.0], [1.0, 2.0]), summarise([0.5, 1.0], [1.0, 2.0])
        >>> added_in_units(summarise([2.0, 4.0], [1.0, 2.0]), host, unit)
        2.0
    """
    rounds = zip(timing.samples_ms, host.samples_ms, unit.samples_ms, strict=True)
    return statistics.median((one - base) / of for one, base, of in rounds)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that so many percent of them do not exceed.

    Example:
        >>> percentile(range(1, 201), 99), percentile([3, 1, 2], 90)
        (198, 3)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the order statistics that enclose the median with at least 95 % probability.

    How many of n samples lie below the median is binomial with p = 1/2, whatever the distribution.
    Fewer than six samples cannot enclose it so surely: then the interval is their range.

    Example:
        >>> median_interval(range(1, 11)), median_interval([1, 2, 3])
        ((2, 9), (1, 3))
    """
    ordered = sorted(values)
    n = len(ordered)
    below, rank = 0, 0
    # The k-th from either end misses the median with probability P(X < k), each.
    while rank < n // 2 and 2 * (below + math.comb(n, rank)) <= (1 - CONFIDENCE) * 2**n:
        below += math.comb(n, rank)
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[n - rank]
