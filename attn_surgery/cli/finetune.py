"""``attn-surgery finetune``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch

from attn_surgery.finetune.experiment import Context, rehearse
from attn_surgery.finetune.process import Interrupted
from attn_surgery.finetune.recipe import Recipe, read_recipe
from attn_surgery.finetune.running import run_recipe


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the words ask for."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    asked = {name: getattr(arguments, name) for name in ("seeds", "control", "output")}
    return dataclasses.replace(
        recipe, **{name: value for name, value in asked.items() if value is not None}
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe that the words ask for."""
    recipe = recipe_of(arguments)
    if arguments.check:
        rehearse(Context.of(recipe))
        print(f"{arguments.recipe}: nothing is wrong with it")
        return 0
    try:
        outcome = run_recipe(recipe)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; the same command continues", file=sys.stderr)
        return 128 + interrupted.signal
    if outcome is not None:
        if arguments.json:
            print(json.dumps(outcome.to_dict(), indent=2))
        else:
            print(f"{outcome}\nwritten: {recipe.output}")
    return 0
