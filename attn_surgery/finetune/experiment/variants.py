"""The models that are compared."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.process import derived
from attn_surgery.finetune.recipe import Recipe, Surgery, attention_of, is_control
from attn_surgery.host import undisturbed_randomness
from attn_surgery.planning import Plan, parse_attention
from attn_surgery.surgery import apply


def operated(recipe: Recipe, variant: str, seed: int, start: nn.Module) -> nn.Module:
    """Return a copy of the start, with the attention of a variant.

    Args:
        recipe: Which attention goes where.
        variant: An attention; most controls, and ``host``, have none.
        seed: Decides the first weights of the attention.
        start: The host.
    """
    model = copy.deepcopy(start)
    if attention_of(variant) is None:
        return model
    attention, asked = surgery_of(recipe.surgery, variant)
    with undisturbed_randomness(seed=derived(seed, "surgery")):
        return apply(model, attention, init=recipe.surgery.init, **asked)


def starts_as_host(recipe: Recipe, variant: str) -> bool:
    """Tell whether a variant computes what the host does until it is trained."""
    if attention_of(variant) is None:
        return True
    attention, asked = surgery_of(recipe.surgery, variant)
    existing = attention.existing if isinstance(attention, Plan) else asked["existing"]
    return recipe.surgery.init == "identity" and existing != "replace"


def surgery_of(surgery: Surgery, variant: str) -> tuple[Any, dict[str, Any]]:
    """Return the attention of a variant, and the keywords of `attn_surgery.plan`.

    Raises:
        SurgeryError: Its options are no table.
    """
    name = attention_of(variant) or ""
    options = surgery.options.get(name, {})
    if not isinstance(options, dict):
        raise SurgeryError(f"surgery.options.{name} must be a table, not {options!r}")
    where = list(surgery.where) or None
    words = {"where": where, "position": surgery.position, "existing": surgery.existing}
    plain = {"shift": False} if is_control(variant) else {}
    return parse_attention(name), {**words, **plain, **options}
