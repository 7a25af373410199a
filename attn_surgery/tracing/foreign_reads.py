"""What the code that is traced reads off other modules than the one that is traced.

A graph goes by the paths of modules, parameters and buffers, so that it follows them. Any other
value of another module is frozen in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.host import is_machinery, put_back_afterwards
from attn_surgery.tracing.proxies import OneStep

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
        if isinstance(value, (Tensor, nn.Module, OneStep)) or (callable(value) and not is_own):
            return
        caller = sys._getframe(2)
        if not is_machinery(caller) and caller.f_globals.get("__name__") != _CONTAINERS:
            self.names.add(name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is read meanwhile."""
        classes = {type(each) for each in self._modules.values()}
        before = {
            cls: vars(cls).get("__getattribute__")
            for cls in classes
            if not issubclass(cls, torch.jit.ScriptModule)
        }

        def put_back() -> None:
            for cls, own in before.items():
                if own is not None:
                    cls.__getattribute__ = own
                elif "__getattribute__" in vars(cls):
                    del cls.__getattribute__

        with put_back_afterwards(put_back):
            for cls in before:
                cls.__getattribute__ = self._telling(cls.__getattribute__)
            yield

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
