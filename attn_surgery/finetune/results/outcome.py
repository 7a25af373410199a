"""What came of an experiment: a line for each variant, and what may be concluded from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from attn_surgery.finetune.process import need
from attn_surgery.finetune.recipe import CONTROL, HOST

CONFIDENCE = 0.95
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Costs:
    """What a variant adds to the host; None where that is not known.

    Attributes:
        params: Parameters.
        macs: Multiply-adds of one image.
        latency_ratio: Median time of a forward pass, divided by the host's, in pairs.
        latency_low: Lower end of its 95 % interval.
        latency_high: Upper end of it.
        error: Why something is not known.
    """

    params: int | None = None
    macs: int | None = None
    latency_ratio: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    error: str = ""


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
class Line:
    """A variant, over all seeds.

    Attributes:
        variant: ``host`` (before everything), ``control``, or an attention.
        scores: For each seed, what the last weights score.
        at_insertion: For each seed, what the first weights scored.
        best: For each seed, the best score after any epoch, chosen by the very images it is
            measured on.
        difference: To the control.
        costs: What it adds to the host.
        gates: For each attention, how far it is from the identity; the mean over seeds.
    """

    variant: str
    scores: tuple[float, ...]
    at_insertion: tuple[float, ...] = ()
    best: tuple[float, ...] = ()
    difference: Difference | None = None
    costs: Costs = Costs()
    gates: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """The result of a recipe.

    Attributes:
        score: The metric's name.
        lines: The host first.
        recipe: As it was run.
        environment: Where and with what.
        runs: What was measured after each epoch of each run.
    """

    score: str
    lines: tuple[Line, ...]
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    runs: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON; the losses of single steps are in each run's metrics."""
        lines = [{**asdict(each), "mean": each.mean, "spread": each.spread} for each in self.lines]
        return {
            "score": self.score,
            "lines": lines,
            "verdicts": self.verdicts(),
            "recipe": dict(self.recipe),
            "environment": dict(self.environment),
            "runs": [{k: v for k, v in run.items() if k != "steps"} for run in self.runs],
        }

    def table(self, style: str = "simple") -> str:
        """Return the table in one of tabulate's styles."""
        rows = [_row(line) for line in self.lines]
        heads = [
            "variant",
            f"{self.score} (%)",
            "sd over seeds",
            "to control (95 %)",
            "params added",
            "MACs added",
            "latency ratio (95 %)",
            "gates from 1 (%)",
        ]
        return tabulate(rows, heads, style, disable_numparse=True)

    def verdicts(self) -> list[str]:
        """Return a sentence for each attention."""
        return [
            f"{line.variant} {line.difference.verdict}"
            for line in self.lines
            if line.difference is not None
        ]

    def __str__(self) -> str:
        return "\n\n".join([self.table(), "\n".join(self.verdicts() + self.remarks())])

    def remarks(self) -> list[str]:
        """Return what has to be said below the table."""
        places = [*(run.get("environment", {}) for run in self.runs), self.environment]
        told = ("; ".join(f"{key} {value}" for key, value in each.items()) for each in places)
        measured = [f"measured: {each}" for each in dict.fromkeys(told) if each]
        unknown = [f"{e.variant}: {e.costs.error}" for e in self.lines if e.costs.error]
        starts = [
            f"{run['identity']['variant']}, seed {run['identity']['seed']}: {run['start']}"
            for run in self.runs
            if run.get("start")
        ]
        kept = "scores are those of the last weights, not of the best; "
        gates = (
            "gates from 1: |attention(x) - x| / |x|, the least and the most of all sites; MACs: "
            "multiply-adds of convolutions and matrix products"
        )
        note = [str(self.recipe["note"])] if self.recipe.get("note") else []
        return [kept + gates, *note, *starts, *unknown, *measured]


def gather(
    results: Sequence[Mapping[str, Any]],
    score: str,
    costs: Mapping[str, Costs],
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Outcome:
    """Put the results of all runs together.

    Args:
        results: What `attn_surgery.finetune.experiment.run_experiment` returned.
        score: The metric that counts.
        costs: For each attention.
        recipe: As it was run.
        environment: Where.
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for each in results:
        by_variant.setdefault(each["identity"]["variant"], []).append(each)
    control = [each["score"][score] for each in by_variant.get(CONTROL, ())]
    lines = tuple(
        _line(variant, each, score, control, costs.get(variant, Costs()))
        for variant, each in by_variant.items()
    )
    return Outcome(score, lines, recipe, environment, tuple(results))


def _line(
    variant: str,
    results: Sequence[Mapping[str, Any]],
    score: str,
    control: Sequence[float],
    costs: Costs,
) -> Line:
    scores = tuple(each["score"][score] for each in results)
    if variant == HOST:
        return Line(variant, scores)
    difference = paired(scores, control) if control and variant != CONTROL else None
    sites = results[0]["gates"]
    return Line(
        variant,
        scores,
        tuple(each["at_insertion"][score] for each in results),
        tuple(each["best"] for each in results),
        difference,
        costs,
        {site: statistics.fmean(each["gates"][site] for each in results) for site in sites},
    )


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


def _row(line: Line) -> list[str]:
    costs, spread = line.costs, line.spread
    return [
        {HOST: "host before", CONTROL: "control after"}.get(line.variant, f"{line.variant} after"),
        f"{100 * line.mean:.2f}",
        "" if spread is None else f"{100 * spread:.2f}",
        "" if line.difference is None else interval(line.difference),
        "" if costs.params is None else f"{costs.params:+,}",
        "" if costs.macs is None else f"{costs.macs:+,}",
        _ratio(costs),
        _moved(line.gates),
    ]


def interval(difference: Difference) -> str:
    """Write a difference in percent, with its interval.

    Example:
        >>> interval(Difference(0.004, -0.001, 0.009, pairs=5))
        '+0.40 (-0.10 to +0.90)'
    """
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.2f}"
    ends = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    return f"{100 * difference.mean:+.2f} ({ends})"


def _ratio(costs: Costs) -> str:
    if costs.latency_ratio is None:
        return ""
    return f"{costs.latency_ratio:.3f} ({costs.latency_low:.3f} to {costs.latency_high:.3f})"


def _moved(gates: Mapping[str, float]) -> str:
    if not gates:
        return ""
    return f"{100 * min(gates.values()):.1f} to {100 * max(gates.values()):.1f}"
