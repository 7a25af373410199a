"""Writes the keys of a recipe, from the docstrings of its tables, into docs/recipes.md.

python docs/keys.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn_surgery.finetune.recipe import Data, Host, Recipe, Stage, Surgery

PAGE = Path(__file__).parent / "recipes.md"
BEGIN, END = "<!-- made by docs/keys.py -->\n", "<!-- end -->\n"
TABLES = {
    "Before the first table": Recipe,
    "`[host]`": Host,
    "`[surgery]`": Surgery,
    "`[data]`": Data,
    "`[[pretraining]]` and `[[stages]]`": Stage,
}


def main() -> None:
    """Replace the tables in the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2])


def tables() -> str:
    """Return a Markdown table of keys, defaults and meanings for each table of a recipe."""
    return "".join(
        f"\n### {title}\n\n| key | default | what it says |\n|---|---|---|\n{''.join(rows(table))}"
        for title, table in TABLES.items()
    )


def rows(table: type[Any]) -> Iterator[str]:
    """Yield a row for each key, but for those that are tables themselves."""
    meanings = told(table)
    for field in dataclasses.fields(table):
        if field.name not in ("host", "data", "stages", "surgery", "pretraining"):
            yield f"| `{field.name}` | {default(field)} | {meanings[field.name]} |\n"


def told(table: type[Any]) -> dict[str, str]:
    """Return what the docstring says of each attribute, on one line."""
    section = (inspect.getdoc(table) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def default(field: dataclasses.Field[Any]) -> str:
    """Return a key's default as TOML has it."""
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`"
    if field.default is dataclasses.MISSING:
        return "needed"
    return f"`{_toml(field.default)}`"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
