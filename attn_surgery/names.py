"""Where the package's names are: public ones, imported when asked for, and those that moved.

``attn-surgery --help`` imports the package, and has no need of torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __package__


def imported_when_asked(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names stand in modules below it.

    Args:
        package: Its dotted name.
        homes: Module, relative to the package, to the names from there; the module itself is
            handed on under its own name, too.
    """
    known = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in homes:
            return importlib.import_module(f"{package}.{name}")
        if name in known:
            return getattr(importlib.import_module(f"{package}.{known[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


# Models that were pickled before modules moved name their classes by where they stood.

_HOMES = {
    "attention.batches": "attention.construction.batch_dims",
    "attention.building": "attention.construction.building",
    "attention.gate": "attention.construction.gate",
    "attention.identity": "attention.construction.identity_start",
    "former": "rewriting.replaced_modules",
    "former_self": "rewriting.alteration",
    "inserting": "rewriting.insertion",
    "operated": "rewriting.one_off_class",
    "origin": "surgery.origin",
    "placing": "finding.spots",
    "sites": "planning.sites",
    "sources": "rewriting.wrapped_source",
}

_NAMES = {"Former": "Replaced", "Surgery": "Alteration"}


class _Moved(MetaPathFinder, Loader):
    """Finds, under its old path, a module that hands on what the one at the new path has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in _HOMES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make an empty one."""

    def exec_module(self, module: ModuleType) -> None:
        home = importlib.import_module(f"{PACKAGE}.{_HOMES[module.__name__.partition('.')[2]]}")

        def hand_on(name: str) -> Any:
            return getattr(home, _NAMES.get(name, name))

        vars(module)["__getattr__"] = hand_on


sys.meta_path.append(_Moved())
