"""finetune.recipe."""

from attn_surgery.finetune.recipe.reading import override, parse_recipe, read_recipe, shipped
from attn_surgery.finetune.recipe.tables import CONTROL, HOST, Data, Host, Recipe, Stage, Surgery

__all__ = [
    "CONTROL",
    "HOST",
    "Data",
    "Host",
    "Recipe",
    "Stage",
    "Surgery",
    "override",
    "parse_recipe",
    "read_recipe",
    "shipped",
]
