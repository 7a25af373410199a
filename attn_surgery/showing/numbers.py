"""The numbers beside the colours: how far gates are from 1, of which channels, for which class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from attn_surgery.showing.gates import Numbers

LOW, HIGH = 0.5, 1.5
"""The ends of the scale of gates, always: what lies beyond is marked as clipped."""
DAMPED, RAISED, SILENCED = 0.95, 1.05, 0.1
"""From where on a channel counts as such, by its mean gate over the images."""
_ROUNDING = 1e-10
"""The variance of a gate that does not vary, at most."""


@dataclass(frozen=True)
class Spread:
    """How the gates of a site's channels are distributed; each the mean over the images.

    Attributes:
        channels: How many there are.
        dead: How many of them were zero everywhere before the attention, and have no gate.
        median: Of the others.
        low: 5 % are below.
        high: 5 % are above.
        distance: The mean of ``|gate - 1|``.
        raised: How many are above 1.05.
        damped: How many are below 0.95, those that are silenced included.
        silenced: How many are below 0.1.
        clipped: How many are not on the scale from 0.5 to 1.5.
        farthest: The channel that is farthest from 1; -1 where none has a gate.
        farthest_gate: Its gate.
    """

    channels: int
    dead: int
    median: float
    low: float
    high: float
    distance: float
    raised: int
    damped: int
    silenced: int
    clipped: int
    farthest: int
    farthest_gate: float


def spread_of(channel: Numbers) -> Spread:
    """Return the numbers of one site.

    Args:
        channel: Gates, ``(images, channels)``, NaN where there is none.

    Example:
        >>> found = spread_of(numpy.array([[1.0, 1.2, 0.05], [1.0, 1.0, 0.05]]))
        >>> found.raised, found.silenced, found.farthest, round(found.median, 3)
        (1, 1, 2, 1.0)
    """
    gates = mean_gates(channel)
    known = gates[~numpy.isnan(gates)]
    if not known.size:
        nan = float("nan")
        return Spread(gates.size, gates.size, nan, nan, nan, nan, 0, 0, 0, 0, -1, nan)
    low, median, high = numpy.quantile(known, [0.05, 0.5, 0.95])
    far = int(numpy.nanargmax(numpy.abs(gates - 1)))
    return Spread(
        channels=gates.size,
        dead=gates.size - known.size,
        median=float(median),
        low=float(low),
        high=float(high),
        distance=float(numpy.abs(known - 1).mean()),
        raised=int((known > RAISED).sum()),
        damped=int((known < DAMPED).sum()),
        silenced=int((known < SILENCED).sum()),
        clipped=int(((known < LOW) | (known > HIGH)).sum()),
        farthest=far,
        farthest_gate=float(gates[far]),
    )


def mean_gates(channel: Numbers) -> Numbers:
    """Return the mean over images, ``(images, channels)`` -> ``(channels,)``, of those known."""
    with warnings.catch_warnings():  # of channels without any
        warnings.simplefilter("ignore", RuntimeWarning)
        return numpy.nanmean(channel, axis=0)


def by_class(channel: Numbers, labels: Sequence[str | None]) -> dict[str, Numbers]:
    """Return each class -> the mean gates of its images, ``(channels,)``; empty without labels.

    Example:
        >>> gates = numpy.array([[1.0, 1.0], [1.4, 1.0], [1.2, 1.0]])
        >>> {name: each.round(1).tolist() for name, each in by_class(gates, "aba").items()}
        {'a': [1.1, 1.0], 'b': [1.4, 1.0]}
    """
    known = [(label, row) for label, row in zip(labels, channel, strict=True) if label is not None]
    names = sorted({label for label, _ in known})
    return {
        name: mean_gates(numpy.stack([row for label, row in known if label == name]))
        for name in names
    }


@dataclass(frozen=True)
class Contrast:
    """How the gates of a site differ between classes.

    Attributes:
        channel: The channel whose mean gates of the classes are farthest apart.
        low: The least of them, with its class.
        high: The greatest, with its class.
        share: Which share of the variance between images, over all channels, is variance between
            classes: 1 if the images of a class have the same gates; NaN if no gate varies, or no
            class has two images.
    """

    channel: int
    low: tuple[str, float]
    high: tuple[str, float]
    share: float


def contrast_of(channel: Numbers, labels: Sequence[str | None]) -> Contrast | None:
    """Return how classes differ, or None where there are fewer than two of them.

    Example:
        >>> found = contrast_of(numpy.array([[1.0, 1.0], [1.4, 1.0], [1.0, 1.0]]), "aba")
        >>> found.channel, found.low, found.high, round(found.share, 3)
        (0, ('a', 1.0), ('b', 1.4), 1.0)
    """
    classes = by_class(channel, labels)
    if len(classes) < 2:
        return None
    names, means = list(classes), numpy.stack(list(classes.values()))
    apart = means.max(0) - means.min(0)
    if numpy.isnan(apart).all():
        return None
    far = int(numpy.nanargmax(apart))
    low, high = int(means[:, far].argmin()), int(means[:, far].argmax())
    return Contrast(
        far,
        (names[low], float(means[low, far])),
        (names[high], float(means[high, far])),
        _share_between(channel, labels),
    )


def _share_between(channel: Numbers, labels: Sequence[str | None]) -> float:
    told = [label for label in labels if label is not None]
    rows = numpy.stack(
        [row for label, row in zip(labels, channel, strict=True) if label is not None]
    )
    rows = rows[:, ~numpy.isnan(rows).any(0)]
    total = numpy.square(rows - rows.mean(0)).sum()
    if len(set(told)) == len(told) or not total > _ROUNDING * rows.size:
        return float("nan")
    classes = by_class(rows, told)
    own = numpy.stack([classes[label] for label in told])
    return float(numpy.square(own - rows.mean(0)).sum() / total)
