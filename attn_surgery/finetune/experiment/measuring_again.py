"""Measuring again what was saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.experiment import RECIPE, recorded
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.process import read_json
from attn_surgery.finetune.recipe import HOST, override, parse_recipe
from attn_surgery.finetune.tasks import unit_of
from attn_surgery.host import load_weights


@dataclass(frozen=True)
class Again:
    """A run, measured again.

    Attributes:
        run: Its folder within the output.
        score: The metric's name.
        recorded: What it was.
        measured: What it is.
    """

    run: str
    score: str
    recorded: float
    measured: float

    @property
    def same(self) -> bool:
        """Whether both are the same."""
        return self.recorded == self.measured

    def __str__(self) -> str:
        unit = unit_of(self.score)
        told = "as recorded" if self.same else f"recorded: {unit.write(self.recorded)}"
        return f"{self.run}: {self.score} {unit.write(self.measured)} {unit.name} ({told})"


def remeasure(folder: Path, weights: str = "last", settings: Iterable[str] = ()) -> list[Again]:
    """Build every finished run of an output folder anew, fill in what was saved, and measure.

    Args:
        folder: What a recipe calls ``output``.
        weights: ``last`` or ``best``.
        settings: What to change in the recipe, as the place of the data.

    Raises:
        SurgeryError: There is nothing there, or it does not fit.
    """
    if not (folder / RECIPE).is_file():
        raise SurgeryError(f"{folder} is no output of attn-surgery finetune: it has no {RECIPE}")
    table = read_json(folder / RECIPE)
    for setting in settings:
        override(table, setting)
    recipe = parse_recipe(table, str(folder / RECIPE))
    context = Context.of(dataclasses.replace(recipe, output=str(folder)))
    found = []
    for seed in context.recipe.seed_numbers:
        host = context.fresh_host(seed)
        for variant in (HOST, *context.recipe.variants):
            run = Run(context, variant, seed, host)
            if (metrics := recorded(run)) is None:
                continue
            own, score = operated(context.recipe, variant, seed, host), context.task.score
            which = weights if run.stages else "last"
            load_weights(own, run.folder / f"{which}.safetensors", context.recipe.host.model)
            before = metrics["score"][score] if which == "last" else metrics["best"]
            name = run.folder.relative_to(folder).as_posix()
            found.append(Again(name, score, before, context.measure(own)[score]))
    if not found:
        raise SurgeryError(f"{folder} has no run that was finished")
    return found
