"""Models that are timed in turn within one run, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from torch import nn

from attn_surgery.host import Input
from attn_surgery.reporting.measuring import Conditions, Timing, measure


def timed_in_turn(
    title: str,
    builders: Mapping[str, Callable[[], nn.Module]],
    given: Input,
    conditions: Conditions,
    *,
    train: bool,
) -> dict[str, Timing]:
    """Return each one's times, the device's own where it has a clock; doubts go to stderr.

    Raises:
        RuntimeError: One could not be measured.
    """
    run = measure(list(builders.values()), given, conditions, train=train)
    for note in run.doubts:
        print(f"{title}: {note}", file=sys.stderr)
    timings = {}
    for name, each in zip(builders, run.timings, strict=True):
        if isinstance(each, str):
            raise RuntimeError(f"{title}: {name}: {each}")
        timings[name] = each.get("device", each["wall"])
    return timings
