"""A recipe from beginning to end: run, count the costs, write the outcome."""

from __future__ import annotations

from pathlib import Path

from attn_surgery.finetune.experiment import ENVIRONMENT, Context, rehearse, run_experiment
from attn_surgery.finetune.process import alone_in, read_json
from attn_surgery.finetune.recipe import Recipe
from attn_surgery.finetune.results import Outcome, costs_of, gather, publish


def run_recipe(recipe: Recipe) -> Outcome | None:
    """Carry out a recipe, or what is left of it, and write ``result.*`` to its output folder.

    Args:
        recipe: What is wanted.

    Returns:
        The outcome; None in all processes but the first.

    Raises:
        SurgeryError: Something cannot be done, or went wrong; what was saved is whole.
        Interrupted: A signal asked to stop; what was done is saved.
    """
    context, folder = Context.of(recipe), Path(recipe.output)
    with context.at_work():
        rehearse(context)
    with alone_in(folder, context.accelerator):
        with context.at_work():
            results = run_experiment(context.with_views())
        if not context.accelerator.is_main_process:
            return None
        costs = costs_of(
            recipe,
            lambda: context.fresh_host(0),
            context.splits.input_size,
            context.accelerator.device,
        )
        environment = read_json(folder / ENVIRONMENT)
        outcome = gather(results, context.task.score, costs, recipe.to_dict(), environment)
        publish(outcome, folder)
        return outcome
