"""A recipe from beginning to end: run, count the costs, write the outcome."""

from __future__ import annotations

from pathlib import Path

from attn_surgery.finetune.checkpoints import read_json
from attn_surgery.finetune.experiment import ENVIRONMENT, run_experiment
from attn_surgery.finetune.lab import Lab
from attn_surgery.finetune.lock import alone_in
from attn_surgery.finetune.outcome import Outcome, gather
from attn_surgery.finetune.publishing import costs_of, publish
from attn_surgery.finetune.recipe import Recipe
from attn_surgery.finetune.rehearsal import rehearse


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
