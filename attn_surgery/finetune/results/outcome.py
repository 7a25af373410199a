"""What came of an experiment: a line for each variant, and what may be concluded from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from tabulate import tabulate

from attn_surgery.finetune.recipe import CONTROL, HOST, is_control
from attn_surgery.finetune.results.comparison import (
    Comparison,
    Difference,
    compare,
    comparison_table,
    interval,
)
from attn_surgery.finetune.results.domain_table import domain_table
from attn_surgery.finetune.tasks import Unit, unit_of


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
class Line:
    """A variant, over all seeds.

    Attributes:
        variant: ``host`` (before everything), a control, or an attention.
        scores: For each seed, what the last weights score.
        at_insertion: For each seed, what the first weights scored.
        best: For each seed, the best score after any epoch, chosen by the very images it is
            measured on.
        comparisons: With each control.
        costs: What it adds to the host.
        gates: For each attention, how far it is from the identity; the mean over seeds.
        trained_params: Parameters that trained.
        file_bytes: Of the file that `attn_surgery.save` wrote: the attention, and what training
            changed of the host.
        step_s: Seconds of a step of training, the reading of images included.
        steps: Steps of training; the mean over seeds.
    """

    variant: str
    scores: tuple[float, ...]
    at_insertion: tuple[float, ...] = ()
    best: tuple[float, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    costs: Costs = Costs()
    gates: Mapping[str, float] = field(default_factory=dict)
    trained_params: int | None = None
    file_bytes: int | None = None
    step_s: float | None = None
    steps: float | None = None

    @property
    def difference(self) -> Difference | None:
        """To the first control; None where there is none."""
        return self.comparisons[0].difference if self.comparisons else None

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
        lines = [
            {
                **asdict(each),
                "difference": each.difference and asdict(each.difference),
                "mean": each.mean,
                "spread": each.spread,
            }
            for each in self.lines
        ]
        return {
            "score": self.score,
            "lines": lines,
            "verdicts": self.verdicts(),
            "recipe": dict(self.recipe),
            "environment": dict(self.environment),
            "runs": [{k: v for k, v in run.items() if k != "steps"} for run in self.runs],
        }

    @property
    def comparisons(self) -> list[Comparison]:
        """Of each attention with each control."""
        return [each for line in self.lines for each in line.comparisons]

    def table(self, style: str = "simple") -> str:
        """Return the table of the variants in one of tabulate's styles."""
        columns = _columns(self.lines, self.score)
        rows = [[write(line) for write in columns.values()] for line in self.lines]
        return tabulate(rows, list(columns), style, disable_numparse=True)

    def tables(self, style: str = "simple") -> list[str]:
        """Return the table of the variants, and those of domains and comparisons, if there are."""
        unit = unit_of(self.score)
        domains = domain_table(self.runs, self.score, style)
        return list(
            filter(
                None, [self.table(style), domains, comparison_table(self.comparisons, style, unit)]
            )
        )

    def verdicts(self) -> list[str]:
        """Return a sentence for each comparison; one for several that are not judged alike."""
        return list(dict.fromkeys(map(str, self.comparisons)))

    def __str__(self) -> str:
        return "\n\n".join([*self.tables(), "\n".join(self.verdicts() + self.remarks())])

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
            "multiply-adds of convolutions and matrix products; file: what save writes; step: with "
            "the reading of images, without measuring"
        )
        tests = ["p: paired t-test over seeds, two-sided"] if self.comparisons else []
        note = [str(self.recipe["note"])] if self.recipe.get("note") else []
        return [kept + gates, *tests, *note, *starts, *unknown, *measured]


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
    scores = {name: [run["score"][score] for run in runs] for name, runs in by_variant.items()}
    controls = [name for name in by_variant if is_control(name)]
    attentions = [name for name in by_variant if name != HOST and not is_control(name)]
    compared = compare(scores, attentions, controls)
    lines = tuple(
        _line(
            variant,
            runs,
            score,
            tuple(each for each in compared if each.attention == variant),
            costs.get(variant, Costs()),
        )
        for variant, runs in by_variant.items()
    )
    return Outcome(score, lines, recipe, environment, tuple(results))


def _line(
    variant: str,
    results: Sequence[Mapping[str, Any]],
    score: str,
    comparisons: tuple[Comparison, ...],
    costs: Costs,
) -> Line:
    scores = tuple(each["score"][score] for each in results)
    if variant == HOST:
        return Line(variant, scores)
    sites = results[0]["gates"]
    steps = [sum(each.get("taken", ())) for each in results]
    seconds = sum(sum(each.get("training_s", ())) for each in results)
    return Line(
        variant,
        scores,
        tuple(each["at_insertion"][score] for each in results),
        tuple(each["best"] for each in results),
        comparisons,
        costs,
        {site: statistics.fmean(each["gates"][site] for each in results) for site in sites},
        results[0].get("trained_params"),
        results[0].get("file_bytes"),
        seconds / sum(steps) if all(steps) else None,
        statistics.fmean(steps) if all(steps) else None,
    )


# The table


def _columns(lines: Sequence[Line], score: str) -> dict[str, Callable[[Line], str]]:
    """Return the head of each column, and what writes a line's cell."""
    controls = {each.control for line in lines for each in line.comparisons}
    unit = unit_of(score)
    difference = (
        {"to control (95 %)": partial(_difference, unit=unit)} if controls == {CONTROL} else {}
    )
    return {
        "variant": _name,
        f"{score} ({unit.name})": lambda line: unit.write(line.mean),
        "sd over seeds": lambda line: _written(line.spread, "{:.2f}", unit.scale),
        **difference,
        "trained": lambda line: _written(line.trained_params, "{:,}"),
        "params added": lambda line: _written(line.costs.params, "{:+,}"),
        "MACs added": lambda line: _written(line.costs.macs, "{:+,}"),
        "latency ratio (95 %)": lambda line: _ratio(line.costs),
        "file (kB)": lambda line: _written(line.file_bytes, "{:,.1f}", 1e-3),
        "steps": lambda line: _written(line.steps, "{:,.0f}"),
        "step (ms)": lambda line: _written(line.step_s, "{:.1f}", 1e3),
        "gates from 1 (%)": lambda line: _moved(line.gates),
    }


def _name(line: Line) -> str:
    return f"{line.variant} {'before' if line.variant == HOST else 'after'}"


def _difference(line: Line, unit: Unit) -> str:
    return "" if line.difference is None else interval(line.difference, unit)


def _written(value: float | None, form: str, scale: float = 1) -> str:
    return "" if value is None else form.format(value if scale == 1 else value * scale)


def _ratio(costs: Costs) -> str:
    if costs.latency_ratio is None:
        return ""
    return f"{costs.latency_ratio:.3f} ({costs.latency_low:.3f} to {costs.latency_high:.3f})"


def _moved(gates: Mapping[str, float]) -> str:
    if not gates:
        return ""
    return f"{100 * min(gates.values()):.1f} to {100 * max(gates.values()):.1f}"
