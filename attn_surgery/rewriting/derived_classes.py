"""Classes that others derived for one module: parametrized ones, sharded ones.

torch gives a module of its own a subclass of its class, too. What such a class adds stays on top of
whatever surgery changes below it, so that torch finds it where it put it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.utils import parametrize

from attn_surgery.rewriting.unannounced_class import unannounced_class


def class_beneath(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a parametrized module's was derived from; any other as it is."""
    while cls.__module__ == parametrize.__name__:
        (cls,) = cls.__bases__
    return cls


def rebased(cls: type[nn.Module], old: type[nn.Module], new: type[nn.Module]) -> type[nn.Module]:
    """Return what ``cls`` would be had it been derived from ``new`` instead of ``old``.

    The way back leads to the very class that one came from first, if it adds the same as then.
    """
    if cls is old:
        return new
    if not issubclass(cls, old):
        return cls
    bases, body = tuple(rebased(each, old, new) for each in cls.__bases__), _body(cls)
    before = _came_from.get(cls)
    if before is not None and (before.__bases__, _body(before)) == (bases, body):
        return before
    made = unannounced_class(cls.__name__, bases, body)
    _came_from[made] = before or cls
    return made


_came_from: WeakKeyDictionary[type[nn.Module], type[nn.Module]] = WeakKeyDictionary()


def _body(cls: type[nn.Module]) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if name not in _CLASS_STATE}


_CLASS_STATE = ("__dict__", "__weakref__", "__slotnames__")
