"""The package's rooms: each folder imports only from those before it, and by their doors."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

import attn_surgery
from docs import draw

ROOT = Path(attn_surgery.__file__).parent
NAME = "attn_surgery"

ROOMS = [
    "errors",
    "names",
    "version",
    "host",
    "attention.construction",
    "attention",
    "tracing",
    "dataflow",
    "finding",
    "rewriting",
    "planning",
    "choosing",
    "surgery",
    "reporting.counting",
    "reporting.measuring",
    "reporting.drawing",
    "reporting",
    "suggesting",
    "finetune.process",
    "finetune.recipe",
    "finetune.data",
    "finetune.tasks",
    "finetune.lite0",
    "finetune.small_resnet",
    "finetune.small_restorer",
    "finetune.small_segmenter",
    "finetune.hosts",
    "finetune.training",
    "finetune.experiment",
    "finetune.results",
    "finetune.running",
    "finetune.suggesting",
    "finetune",
    "showing",
    "cli",
    "",
    "__main__",
]
"""The way of a model through the package; a file that is in no folder but the top's is a room."""

INNER = (
    *("attention.construction", "reporting.counting", "reporting.measuring"),
    "reporting.drawing",
)
"""Rooms within a room, which has the only door to them from outside."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(name: str) -> str:
    """Return the room of a module: the module itself, or the folder that it stands in."""
    return name if name in ROOMS else name.rpartition(".")[0]


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative: {path.name}"
            continue
        found |= {name for name in names if name.partition(".")[0] == NAME}
    return {name.removeprefix(NAME).lstrip(".") for name in found}


def test_every_file_has_its_room():
    assert {room_of(name) for name in FILES} == set(ROOMS)


@pytest.mark.parametrize("name", FILES)
def test_a_room_imports_only_from_those_before_it(name):
    room = room_of(name)
    others = {room_of(each) for each in imports_of(FILES[name])} - {room}
    assert others <= set(ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("name", FILES)
def test_rooms_are_entered_by_their_doors(name):
    room = room_of(name)
    for each in imports_of(FILES[name]):
        if room_of(each) != room:
            assert each in ROOMS, f"{each} is a file within another room"
            outside = room.partition(".")[0] != each.partition(".")[0]
            assert not (each in INNER and outside), f"{each} is a room within another"


def test_within_a_room_no_file_imports_in_a_circle():
    inside = {
        name: {each for each in imports_of(path) if room_of(each) == room_of(name)}
        for name, path in FILES.items()
        if name not in ROOMS
    }
    left = dict(inside)
    while left:
        free = [name for name, needed in left.items() if not needed & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("name", FILES)
def test_files_are_small(name):
    assert len(FILES[name].read_text().splitlines()) <= 350


@pytest.mark.parametrize("package", [attn_surgery, attn_surgery.finetune])
def test_public_names_are_there_when_asked_for(package):
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        _ = package.aply


def test_the_drawing_is_that_of_the_imports():
    assert draw.drawing() in draw.PAGE.read_text()


def test_the_page_names_files_that_are_there():
    text = draw.PAGE.read_text()
    assert (named := set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text)))
    assert [
        path for path in named if not any((top / path).is_file() for top in (ROOT, ROOT.parent))
    ] == []


def test_every_folder_is_installed():
    listed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")}
    found = {".".join(folder.parts) for folder in folders} | {f"{NAME}.recipes"}
    assert found == set(listed["packages"])
