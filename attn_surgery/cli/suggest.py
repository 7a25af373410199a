"""``attn-surgery suggest``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.process import Interrupted
from attn_surgery.finetune.recipe import Recipe, read_recipe
from attn_surgery.finetune.suggesting import suggest_for


def run(arguments: argparse.Namespace) -> int:
    """Show which sites are worth the attentions that the words ask for."""
    recipe = _recipe_of(arguments)
    if arguments.output is not None and len(recipe.surgery.attention) > 1:
        raise SurgeryError(
            f"--output saves one plan, but the recipe has {len(recipe.surgery.attention)} "
            "attentions; choose one with --attention"
        )
    try:
        found = suggest_for(recipe, batches=arguments.batches, budget=dict(arguments.budget))
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; the same command continues", file=sys.stderr)
        return 128 + interrupted.signal
    if arguments.output is not None:
        for suggestion in found.values():
            suggestion.plan.save(arguments.output)
    if arguments.json:
        print(json.dumps({name: each.to_dict() for name, each in found.items()}, indent=2))
    else:
        print("\n\n".join(f"{name}\n{suggestion}" for name, suggestion in found.items()))
    return 0


def _recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the words ask for."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    if arguments.attention is None:
        return recipe
    surgery = dataclasses.replace(recipe.surgery, attention=(arguments.attention,))
    return dataclasses.replace(recipe, surgery=surgery)
