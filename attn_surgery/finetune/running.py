"""A recipe from beginning to end: run, count the costs, write the outcome."""

from __future__ import annotations

from pathlib import Path

from attn_surgery.finetune.experiment import ENVIRONMENT, Lab, rehearse, run_experiment
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
    lab, folder = Lab.of(recipe), Path(recipe.output)
    with lab.at_work():
        rehearse(lab)
    with alone_in(folder, lab.accelerator):
        with lab.at_work():
            results = run_experiment(lab)
        if not lab.accelerator.is_main_process:
            return None
        costs = costs_of(recipe, lab.fresh_host(0), lab.splits.input_size, lab.accelerator.device)
        environment = read_json(folder / ENVIRONMENT)
        outcome = gather(results, lab.task.score, costs, recipe.to_dict(), environment)
        publish(outcome, folder)
        return outcome
