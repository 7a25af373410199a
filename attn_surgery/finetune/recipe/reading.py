"""From a TOML file to a recipe, checked before anything runs."""

from __future__ import annotations

import dataclasses
import importlib.resources
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.recipe.tables import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

SHIPPED = "attn_surgery.recipes"


def read_recipe(name: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: A file, or the name of a recipe that ships with the package.
        settings: What to change in it, as ``data.batch_size=32`` or ``stages.0.lr=0.1``; values
            are TOML, what is none is a string.

    Raises:
        SurgeryError: There is no such recipe, or something in it is not understood.

    Example:
        >>> read_recipe("digits", ["seeds=5"]).seeds
        5
        >>> read_recipe("digits", ["data.bach_size=32"])
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: digits: [data] has no key 'bach_size'; did \
you mean 'batch_size'?
    """
    table = _table(name)
    for setting in settings:
        override(table, setting)
    return parse_recipe(table, str(name))


def parse_recipe(table: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Turn plain data into a recipe.

    Args:
        table: What TOML or JSON holds.
        name: What to call it in messages.

    Raises:
        SurgeryError: A key is unknown or missing, or a value has another type.
    """
    return _parsed(Recipe, table, name, "the recipe")


def shipped() -> list[str]:
    """Return the names of the recipes that ship with the package.

    Example:
        >>> "digits" in shipped()
        True
    """
    return sorted(path.name.removesuffix(".toml") for path in _shipped_files())


def _shipped_files() -> list[Any]:
    beside = Path(__file__).parents[3] / "recipes"  # an editable installation, or a checkout
    try:
        folder: Any = importlib.resources.files(SHIPPED)
    except ModuleNotFoundError:
        folder = beside
    return [path for path in folder.iterdir() if path.name.endswith(".toml")]


def _table(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        known = {each.name.removesuffix(".toml"): each for each in _shipped_files()}
        if str(name) not in known:
            raise SurgeryError(
                f"there is no recipe {str(name)!r}{nearest(str(name), known)}; give a file, or one "
                f"of those that ship: {', '.join(sorted(known))}"
            )
        path = known[str(name)]
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SurgeryError(f"cannot read the recipe {name}: {error}") from error


# Overriding


def override(table: dict[str, Any], setting: str) -> None:
    """Change one value of plain data, given as ``a.b=value``, in place.

    Raises:
        SurgeryError: There is no such place.

    Example:
        >>> table = {"stages": [{"lr": 0.1}]}
        >>> override(table, "stages.0.lr=0.2")
        >>> table
        {'stages': [{'lr': 0.2}]}
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise SurgeryError(f"{setting!r} is no setting such as data.batch_size=32")
    parts = key.strip().split(".")
    place: Any = table
    for part in parts[:-1]:
        place = _step(place, part, key)
    if not isinstance(place, (dict, list)):
        raise SurgeryError(f"{key!r}: {parts[-2]!r} is a value, not a table")
    if isinstance(place, list):
        place[_index(place, parts[-1], key)] = _value(text)
    else:
        place[parts[-1]] = _value(text)


def _step(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, key)]
    inner = place.setdefault(part, {})
    if not isinstance(inner, (dict, list)):
        raise SurgeryError(f"{key!r}: {part!r} is a value, not a table")
    return inner


def _index(place: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise SurgeryError(f"{key!r}: {part!r} is none of 0 to {len(place) - 1}")
    return int(part)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# Reading by type


def _parsed(cls: Any, table: Any, name: str, where: str) -> Any:
    """Build a dataclass from a table whose keys are its fields."""
    if not isinstance(table, Mapping):
        raise SurgeryError(f"{name}: {where} must be a table, not {table!r}")
    fields = {each.name: each for each in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            hint = _tables_with(key, hints) or nearest(key, fields)
            raise SurgeryError(f"{name}: {where} has no key {key!r}{hint}")
    values = {
        key: _of_type(hints[key], value, name, _inner(where, key)) for key, value in table.items()
    }
    no_default = dataclasses.MISSING
    for key, each in fields.items():
        if key not in values and each.default is no_default is each.default_factory:
            raise SurgeryError(f"{name}: {where} needs {key!r}")
    return cls(**values)


def _tables_with(key: str, hints: Mapping[str, Any]) -> str:
    """Say which of the tables that a table holds have the key, if any does."""
    found = []
    for table, hint in hints.items():
        inner = next((each for each in typing.get_args(hint) if each is not ...), hint)
        if dataclasses.is_dataclass(inner) and key in {e.name for e in dataclasses.fields(inner)}:
            found.append(f"{table}.{key}" if inner is hint else f"{table}.0.{key}")
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _inner(where: str, key: str) -> str:
    return f"[{key}]" if where == "the recipe" else f"{where.strip('[]')}.{key}"


def _of_type(hint: Any, value: Any, name: str, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _parsed(hint, value, name, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _many(arguments[0], value, name, where)
    if origin is not None and issubclass(origin, Mapping):
        expected: Any = Mapping
    else:
        expected = (float, int) if hint is float else hint
    if hint is str and isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        kind = "table" if expected is Mapping else typing.cast(type, hint).__name__
        raise SurgeryError(f"{name}: {where.strip('[]')} must be of type {kind}, not {value!r}")
    return float(value) if hint is float else value


def _many(hint: Any, value: Any, name: str, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) and hint is str:
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise SurgeryError(f"{name}: {where.strip('[]')} must be a list, not {value!r}")
    return tuple(_of_type(hint, each, name, f"[{where.strip('[]')}]") for each in value)
