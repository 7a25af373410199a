"""What the code that is traced reads off other modules than the one that is traced.

A graph goes by the paths of modules, parameters and buffers, so that it follows them. Any other
value of another module is frozen in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.host import is_machinery

_CONTAINERS = "torch.nn.modules.container"


class ForeignReads:
    """The reads of one trace, by the names of what was read.

    Args:
        root: Whose forward is traced: what is read off it is none of them.
    """

    def __init__(self, root: nn.Module):
        self.names: set[str] = set()
        self._modules = {id(each): each for each in root.modules() if each is not root}
        self._modules |= {id(each): each for each in _held_apart(root) if each is not root}

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        """Note a read, if a graph would freeze what it gave."""
        if id(module) not in self._modules or name.startswith("__"):
            return
        is_own = name in vars(module) or name == "training"
        if isinstance(value, (Tensor, nn.Module)) or (callable(value) and not is_own):
            return
        caller = sys._getframe(2)
        if not is_machinery(caller) and caller.f_globals.get("__name__") != _CONTAINERS:
            self.names.add(name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is read meanwhile."""
        classes = {type(each) for each in self._modules.values()}
        with ExitStack() as stack:
            for cls in classes:
                if not issubclass(cls, torch.jit.ScriptModule):
                    stack.enter_context(self._told_by(cls))
            yield

    @contextmanager
    def _told_by(self, cls: type[nn.Module]) -> Iterator[None]:
        own = vars(cls).get("__getattribute__")
        cls.__getattribute__ = self._telling(cls.__getattribute__)
        try:
            yield
        finally:
            if own is None:
                del cls.__getattribute__
            else:
                cls.__getattribute__ = own

    def _telling(self, original: Callable[..., Any]) -> Any:
        def read(module: nn.Module, name: str) -> Any:
            value = original(module, name)
            self.note(module, name, value)
            return value

        return read


def _held_apart(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a module holds without their being its children."""
    for value in vars(root).values():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, nn.Module):
                yield from each.modules()
