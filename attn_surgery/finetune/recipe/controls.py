"""What attention is compared with: controls, each with the same seeds, steps and budget."""

from __future__ import annotations

import dataclasses

from attn_surgery.finetune.recipe.stages import Stage

CONTROL = "control"
HOST = "host"
SCALE = "scale"
"""The attention that is a constant gate, and the control that has it at the attention's sites."""

CONTROLS: dict[str, tuple[str, ...] | None] = {
    "same": None,
    "head": ("head",),
    "norms": ("head", "norms"),
    SCALE: None,
    "full": ("all",),
}
"""Each control, and what its stages train; None for what the recipe's own do."""


def variant_of(control: str) -> str:
    """Return what a control is called among the variants, and its folder.

    Example:
        >>> [variant_of(each) for each in ("same", "head")]
        ['control', 'control-head']
    """
    return CONTROL if control == "same" else f"{CONTROL}-{control}"


_BY_VARIANT = {variant_of(control): control for control in CONTROLS}


def is_control(variant: str) -> bool:
    """Tell whether a variant is one of the controls."""
    return variant in _BY_VARIANT


def attention_of(variant: str) -> str | None:
    """Return the attention that a variant has; None where it has none.

    Example:
        >>> [attention_of(each) for each in ("cbam", "control-scale", "control-norms", "host")]
        ['cbam', 'scale', None, None]
    """
    if variant == variant_of(SCALE):
        return SCALE
    return None if variant == HOST or is_control(variant) else variant


def stage_for(variant: str, stage: Stage, *, has_head: bool = True) -> Stage:
    """Return a stage as a variant goes through it: the recipe's, but for what trains.

    Args:
        variant: An attention, a control, or the host.
        stage: The recipe's.
        has_head: Whether it is known what the head is. Where it is not, what the stage names of
            the host stands for it.

    Example:
        >>> stage_for("control-norms", Stage(trains=("attention",), epochs=3)).trains
        ('head', 'norms')
        >>> stage_for("control-norms", Stage(trains=("last.*",)), has_head=False).trains
        ('last.*', 'norms')
    """
    trains = CONTROLS.get(_BY_VARIANT.get(variant, ""))
    if trains is None:
        return stage
    if not has_head and "head" in trains:
        named = (each for each in stage.trains if each not in {"all", "attention"})
        trains = tuple(dict.fromkeys((*named, *(each for each in trains if each != "head"))))
    return dataclasses.replace(stage, trains=trains, freezes=(), freezes_attention=False)
