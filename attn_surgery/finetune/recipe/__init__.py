"""A recipe as data: what is trained, on what, how, how often; and how it is read from TOML.

Nothing is imported for that but Python's own: the command line reads recipes' names before torch is
there.
"""

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
