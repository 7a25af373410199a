"""The models that are compared."""

from __future__ import annotations

import copy

import torch
from torch import nn

from attn_surgery.finetune.process import derived
from attn_surgery.finetune.recipe import CONTROL, HOST, Recipe, surgery_of
from attn_surgery.planning import Plan
from attn_surgery.surgery import apply


def operated(recipe: Recipe, variant: str, seed: int, start: nn.Module) -> nn.Module:
    """Return a copy of the start, with the attention of a variant.

    Args:
        recipe: Which attention goes where.
        variant: An attention; ``control`` and ``host`` have none.
        seed: Decides the first weights of the attention.
        start: The host.
    """
    model = copy.deepcopy(start)
    if variant in {CONTROL, HOST}:
        return model
    attention, asked = surgery_of(recipe.surgery, variant)
    with torch.random.fork_rng([]):
        torch.manual_seed(derived(seed, "surgery"))
        return apply(model, attention, init=recipe.surgery.init, **asked)


def starts_as_host(recipe: Recipe, variant: str) -> bool:
    """Tell whether a variant computes what the host does until it is trained."""
    if variant == CONTROL:
        return True
    attention, asked = surgery_of(recipe.surgery, variant)
    existing = attention.existing if isinstance(attention, Plan) else asked["existing"]
    return recipe.surgery.init == "identity" and existing != "replace"
