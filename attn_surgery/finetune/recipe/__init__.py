"""A recipe as data: what is trained, on what, how, how often; and how it is read from TOML.

Nothing is imported for that but Python's own: the command line reads recipes' names before torch is
there.
"""

from attn_surgery.finetune.recipe.controls import (
    CONTROL,
    CONTROLS,
    HOST,
    SCALE,
    attention_of,
    is_control,
    variant_of,
)
from attn_surgery.finetune.recipe.reading import override, parse_recipe, read_recipe, shipped
from attn_surgery.finetune.recipe.stages import Stage
from attn_surgery.finetune.recipe.tables import Data, Host, Recipe, Surgery

__all__ = [
    "CONTROL",
    "CONTROLS",
    "HOST",
    "SCALE",
    "Data",
    "Host",
    "Recipe",
    "Stage",
    "Surgery",
    "attention_of",
    "is_control",
    "override",
    "parse_recipe",
    "read_recipe",
    "shipped",
    "variant_of",
]
