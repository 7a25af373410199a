"""An outcome as files: JSON, CSV, Markdown and a picture of the curves."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.experiment import surgery_of
from attn_surgery.finetune.process import need, write_json
from attn_surgery.finetune.recipe import CONTROL, HOST, Recipe
from attn_surgery.finetune.results.comparison import Comparison
from attn_surgery.finetune.results.outcome import Costs, Line, Outcome
from attn_surgery.finetune.tasks import unit_of
from attn_surgery.host import write_whole
from attn_surgery.reporting import report

_AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def costs_of(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    input_size: tuple[int, ...],
    device: torch.device,
) -> dict[str, Costs]:
    """Count, and measure, what each attention, and a constant gate, adds to a host.

    The runs are over by then, and their results must not be lost: whatever fails stands in
    `Costs.error`.

    Args:
        recipe: Which attentions, and for how long to measure.
        build: Makes the host.
        input_size: ``(C, H, W)`` of an image.
        device: Where to measure.
    """
    return {
        variant: _costs_or_why_not(recipe, variant, build, input_size, device)
        for variant in recipe.operated_variants
    }


def _costs_or_why_not(
    recipe: Recipe, variant: str, build: Callable[[], nn.Module], *conditions: Any
) -> Costs:
    try:
        return _costs(recipe, variant, build(), *conditions)
    except SurgeryError as error:
        return Costs(error=str(error))
    except Exception as error:
        return Costs(error=f"the costs are not known: {one_line(error)}")


def _costs(
    recipe: Recipe, variant: str, host: nn.Module, input_size: tuple[int, ...], device: torch.device
) -> Costs:
    attention, asked = surgery_of(recipe.surgery, variant)
    seconds = recipe.report_seconds
    base, own = report(
        host,
        [attention],
        input_size=input_size,
        init=recipe.surgery.init,
        latency=seconds > 0,
        seconds=seconds or 1.0,
        device=device,
        autocast=_AUTOCAST[recipe.amp],
        threads=recipe.threads or None,
        **asked,
    ).rows
    return Costs(
        _added(own.params, base.params),
        _added(own.macs, base.macs),
        own.latency_ratio,
        own.latency_ratio_low,
        own.latency_ratio_high,
        own.error or base.error or "",
    )


def _added(own: int | None, base: int | None) -> int | None:
    return None if own is None or base is None else own - base


def publish(outcome: Outcome, folder: Path, name: str = "result") -> None:
    """Write an outcome as ``NAME.json``, ``.csv``, ``.md`` and ``.png``.

    Raises:
        SurgeryError: A file cannot be written.
    """
    write_json(folder / f"{name}.json", outcome.to_dict())
    write_whole(folder / f"{name}.csv", _csv(outcome).encode())
    write_whole(folder / f"{name}.md", _markdown(outcome).encode())
    write_whole(folder / f"{name}.png", _picture(outcome))


def _csv(outcome: Outcome) -> str:
    text = io.StringIO()
    seeds = max(len(line.scores) for line in outcome.lines)
    writer = csv.writer(text, lineterminator="\n")
    costs, own = list(vars(Costs())), ["trained_params", "file_bytes", "step_s", "steps"]
    controls = list(dict.fromkeys(each.control for each in outcome.comparisons))
    compared = [f"{key}{_of(control)}" for control in controls for key in _COMPARED]
    names = ["variant", "mean", "spread", *compared, *costs, *own, "gates"]
    first = outcome.recipe.get("first_seed", 0)
    writer.writerow([*names, *(f"seed{first + i}" for i in range(seeds))])
    for line in outcome.lines:
        told = {each.control: each for each in line.comparisons}
        parts = [part for control in controls for part in _compared(told.get(control))]
        gates = statistics.fmean(line.gates.values()) if line.gates else None
        added = [getattr(line.costs, each) for each in costs]
        ours = [getattr(line, each) for each in own]
        cells = [line.variant, line.mean, line.spread, *parts, *added, *ours, gates]
        writer.writerow([*cells, *line.scores])
    return text.getvalue()


_COMPARED = ("difference", "low", "high", "p", "p_holm")


def _of(control: str) -> str:
    """Tell the columns of a control from those of the others: the usual one's have plain names."""
    return control.removeprefix(CONTROL).replace("-", "_")


def _compared(told: Comparison | None) -> tuple[float | None, ...]:
    if told is None:
        return (None,) * len(_COMPARED)
    own = told.difference
    return own.mean, own.low, own.high, told.p, told.holm


def _markdown(outcome: Outcome) -> str:
    remarks = [f"- {each}" for each in outcome.verdicts() + outcome.remarks()]
    sites = _sites([line for line in outcome.lines if line.gates])
    parts = [*outcome.tables("github"), "\n".join(remarks), sites]
    return "\n\n".join(filter(None, parts)) + "\n"


def _sites(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    told = [
        f"- {line.variant}: " + ", ".join(f"{site} {100 * v:.1f}" for site, v in line.gates.items())
        for line in lines
    ]
    return "How far each attention is from the identity (%, mean over seeds):\n\n" + "\n".join(told)


# The picture


def _picture(outcome: Outcome) -> bytes:
    """Draw the score after each epoch: the mean over seeds, and the range."""
    matplotlib: Any = need("matplotlib.figure")
    unit = unit_of(outcome.score)
    figure = matplotlib.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="epoch after the surgery", ylabel=f"{outcome.score} ({unit.name})"
    )
    for line in outcome.lines:
        curves = _curves(outcome.runs, line.variant, outcome.score)
        if line.variant == HOST:
            axes.axhline(unit.scale * line.mean, color="0.6", linestyle="--", label="host before")
        elif curves:
            columns = list(zip(*curves, strict=False))  # by the clock, some seeds have more epochs
            epochs = _epochs(outcome.runs, line.variant)[: len(columns)]
            means = [unit.scale * statistics.fmean(column) for column in columns]
            (drawn,) = axes.plot(epochs, means, marker="o", label=line.variant)
            ends = [[unit.scale * f(column) for column in columns] for f in (min, max)]
            axes.fill_between(epochs, *ends, color=drawn.get_color(), alpha=0.12)
    axes.legend()
    axes.xaxis.get_major_locator().set_params(integer=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _epochs(runs: Sequence[Mapping[str, Any]], variant: str) -> list[int]:
    """Return after how many epochs, over all stages, scores were measured; the first before any."""
    histories = [run["history"] for run in runs if run["identity"]["variant"] == variant]
    found, stage, before = [0], "", 0
    for each in max(histories, key=len):
        if each["stage"] != stage:
            stage, before = each["stage"], found[-1]
        found.append(before + each["epoch"])
    return found


def _curves(runs: Sequence[Mapping[str, Any]], variant: str, score: str) -> list[list[float]]:
    return [
        [run["at_insertion"][score], *(each[score] for each in run["history"])]
        for run in runs
        if run["identity"]["variant"] == variant and variant != HOST
    ]
