"""Fine-tuning a host that holds attention: recipes, and helpers for a loop of one's own."""

from typing import TYPE_CHECKING

from attn_surgery.names import imported_when_asked

if TYPE_CHECKING:
    from attn_surgery.finetune.experiment import remeasure
    from attn_surgery.finetune.lite0 import efficientnet_lite0
    from attn_surgery.finetune.recipe import Recipe, parse_recipe, read_recipe
    from attn_surgery.finetune.results import Outcome
    from attn_surgery.finetune.running import run_recipe
    from attn_surgery.finetune.suggesting import suggest_for
    from attn_surgery.finetune.tasks import distillation_loss
    from attn_surgery.finetune.training import (
        freeze,
        freeze_norm_statistics,
        param_groups,
        thaw_norm_statistics,
        update_optimizer,
    )

__all__ = [
    "Outcome",
    "Recipe",
    "distillation_loss",
    "efficientnet_lite0",
    "freeze",
    "freeze_norm_statistics",
    "param_groups",
    "parse_recipe",
    "read_recipe",
    "remeasure",
    "run_recipe",
    "suggest_for",
    "thaw_norm_statistics",
    "update_optimizer",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "experiment": ["remeasure"],
        "lite0": ["efficientnet_lite0"],
        "recipe": ["Recipe", "parse_recipe", "read_recipe"],
        "results": ["Outcome"],
        "running": ["run_recipe"],
        "suggesting": ["suggest_for"],
        "tasks": ["distillation_loss"],
        "training": [
            "freeze",
            "freeze_norm_statistics",
            "param_groups",
            "thaw_norm_statistics",
            "update_optimizer",
        ],
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
