"""Where modules stood before: models that were pickled then name their classes by those paths."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_HOMES = {
    "attention.batches": "attention.construction.any_batch",
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

_PACKAGE = __package__


class _Moved(MetaPathFinder, Loader):
    """Finds, under its old path, a module that hands on what the one at the new path has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in _HOMES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make an empty one."""

    def exec_module(self, module: ModuleType) -> None:
        home = importlib.import_module(f"{_PACKAGE}.{_HOMES[module.__name__.partition('.')[2]]}")

        def hand_on(name: str) -> Any:
            return getattr(home, _NAMES.get(name, name))

        vars(module)["__getattr__"] = hand_on


sys.meta_path.append(_Moved())
