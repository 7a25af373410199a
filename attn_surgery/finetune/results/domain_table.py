"""What each variant scores in each domain that a recipe measures in."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from attn_surgery.finetune.tasks import unit_of


def domain_table(runs: Sequence[Mapping[str, Any]], score: str, style: str = "simple") -> str:
    """Return the mean score over seeds, a row for each variant and a column for each domain.

    Args:
        runs: What came of each run.
        score: The metric's name.
        style: One of tabulate's.

    Returns:
        The table; "" where there are no domains.

    Example:
        >>> seen = {"accuracy": 0.7, "accuracy/clean": 0.9, "accuracy/noisy": 0.5}
        >>> print(domain_table([{"identity": {"variant": "se"}, "score": seen}], "accuracy"))
        accuracy (%)    clean    noisy
        --------------  -------  -------
        se              90.00    50.00
    """
    start, unit = f"{score}/", unit_of(score)
    columns = [key for key in runs[0]["score"] if key.startswith(start)] if runs else []
    if not columns:
        return ""
    scores: dict[str, list[Mapping[str, float]]] = {}
    for run in runs:
        scores.setdefault(run["identity"]["variant"], []).append(run["score"])
    rows = [
        [variant, *(unit.write(statistics.fmean(each[key] for each in own)) for key in columns)]
        for variant, own in scores.items()
    ]
    heads = [f"{score} ({unit.name})", *(key.removeprefix(start) for key in columns)]
    return tabulate(rows, heads, style, disable_numparse=True)
