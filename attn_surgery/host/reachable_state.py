"""What a forward may write on besides its module: what its attributes, class and globals hold."""

from __future__ import annotations

import collections
import copy
import operator
import random
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from attn_surgery.host.restore import own_attributes, refill, same_items

_MOST = 2_000
_DEEPEST = 4
_SMALL = 1 << 16

_CONTAINERS = (
    list,
    dict,
    set,
    collections.deque,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
)
"""Of other classes, what they derive from these or not, nothing is known."""
_WHOLE = (nn.Module, types.ModuleType, types.FunctionType, types.MethodType, str, bytes)
_PLAIN = frozenset((bool, int, float, str, type(None)))
_NOT_THE_HOSTS = frozenset("attn_surgery torch logging threading builtins numpy".split())


class ReachableState:
    """What modules and their code reach in a few steps, and what it held when it was first reached.

    Whoever runs the modules puts everything back each time, so that it is looked for once.
    """

    def __init__(self) -> None:
        self._kept: dict[object, _Kept] = {}
        self._reached: dict[object, list[object]] = {}

    def of(self, modules: Iterable[nn.Module]) -> Reached:
        """Return what is reached from some modules."""
        modules = list(modules)
        found: dict[object, _Kept] = {}
        for start in (*modules, *dict.fromkeys(map(type, modules))):
            if start not in self._reached:
                self._reached[start] = self._walk(start)
            for each in self._reached[start]:
                found[each] = self._kept[each]
        return Reached(list(found.values()))

    def _walk(self, start: nn.Module | type) -> list[object]:
        if isinstance(start, type):
            pending = [(value, _DEEPEST) for value in _reached_by_code(start)]
        else:
            pending = [(value, _DEEPEST) for _, value in own_attributes(start)]
        seen: set[object] = set()
        found: list[object] = []
        while pending and len(seen) < _MOST:
            value, depth = pending.pop()
            known = value.key if isinstance(value, _Variable) else id(value)
            if type(value) in _PLAIN or known in seen:
                continue
            if kept := self._kept.get(known) or _kept(value):
                self._kept[known] = kept
                found.append(known)
            elif not isinstance(value, (tuple, types.FunctionType)):
                continue
            seen.add(known)
            if depth > 1:
                pending += [(each, depth - 1) for each in _within(value)]
        return found


class Reached:
    """All that is reached from some modules, to be put back."""

    def __init__(self, kept: list[_Kept]):
        self._kept = kept

    def restore(self) -> bool:
        """Put everything back; return whether anything had been written."""
        wrote = [each.put_back() for each in self._kept]
        return any(wrote)


@dataclass(frozen=True)
class _Variable:
    """A global of the host's."""

    scope: dict[str, Any]
    name: str

    @property
    def key(self) -> tuple[int, str]:
        """What it is known by: the same variable is named in many functions."""
        return id(self.scope), self.name

    def get(self) -> Any:
        """Return its value."""
        return self.scope.get(self.name)

    def set(self, value: Any) -> None:
        """Give it another value."""
        self.scope[self.name] = value


class _Kept:
    """One thing that can be written on: how it is read and written, and what it held."""

    def __init__(
        self,
        read: Callable[[], Any],
        write: Callable[[Any], object],
        same: Callable[[Any, Any], bool],
        copied: Callable[[Any], Any] = lambda content: content,
    ):
        self.read, self.write, self.same = read, write, same
        self.content = copied(read())

    def put_back(self) -> bool:
        if self.same(self.read(), self.content):
            return False
        self.write(self.content)
        return True


def _kept(value: Any) -> _Kept | None:
    if type(value) in _CONTAINERS:
        return _kept_items(value)
    if isinstance(value, type):
        return _Kept(lambda: dict(vars(value)), lambda own: _reset(value, own), same_items)
    if isinstance(value, _Variable):
        return _Kept(value.get, value.set, operator.is_)
    if isinstance(value, types.CellType):
        return _Kept(lambda: _content(value), lambda held: _fill(value, held), operator.is_)
    if isinstance(value, Tensor):
        is_left = isinstance(value, nn.Parameter) or value.is_meta or value.numel() > _SMALL
        return None if is_left else _kept_tensor(value)
    if isinstance(value, numpy.ndarray):
        return None if value.size > _SMALL else _kept_array(value)
    if isinstance(value, torch.Generator):
        return _Kept(value.get_state, value.set_state, torch.equal)
    if isinstance(value, random.Random):
        return _Kept(value.getstate, value.setstate, operator.eq)
    if isinstance(value, numpy.random.Generator):
        made_by = value.bit_generator
        return _Kept(lambda: made_by.state, lambda old: setattr(made_by, "state", old), _same_text)
    if _is_an_object(value):
        return _kept_items(vars(value))
    return None


def _kept_items(container: Any) -> _Kept:
    return _Kept(
        lambda: container, lambda items: refill(container, items), same_items, copied=copy.copy
    )


def _kept_tensor(tensor: Tensor) -> _Kept:
    return _Kept(
        lambda: tensor,
        lambda old: tensor.detach().copy_(old[1]),
        lambda now, old: now._version == old[0],
        copied=lambda now: (now._version, now.detach().clone()),
    )


def _kept_array(array: numpy.ndarray[Any, Any]) -> _Kept:
    return _Kept(
        lambda: array,
        lambda old: array.__setitem__(..., old),
        lambda now, old: now.tobytes() == old.tobytes(),  # NaN is no other than NaN
        copied=copy.copy,
    )


def _same_text(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def _reset(cls: type, own: dict[str, Any]) -> None:
    now = dict(vars(cls))
    for name in now.keys() - own.keys():
        delattr(cls, name)
    for name, value in own.items():
        if now.get(name) is not value:
            setattr(cls, name, value)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _EMPTY


def _fill(cell: types.CellType, content: Any) -> None:
    if content is _EMPTY:
        del cell.cell_contents
    else:
        cell.cell_contents = content


_EMPTY = object()


def _within(value: Any) -> list[Any]:
    """Return what a thing holds that can be written on in turn."""
    if type(value) in _CONTAINERS:
        return list(value.values() if isinstance(value, dict) else value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, types.FunctionType):
        return [] if _is_others(value) else list(value.__closure__ or ())
    if isinstance(value, (_Variable, types.CellType)):
        return [value.get() if isinstance(value, _Variable) else _content(value)]
    if isinstance(value, type):
        return [each for each in vars(value).values() if type(each) in _CONTAINERS]
    return list(vars(value).values()) if _is_an_object(value) else []


def _is_an_object(value: Any) -> bool:
    """Tell whether a value is one of the host's own classes, with attributes to be set."""
    if isinstance(value, (type, *_WHOLE)) or not type(value).__dictoffset__:
        return False
    return type(value).__module__.partition(".")[0] not in _NOT_THE_HOSTS


def _reached_by_code(kind: type) -> list[Any]:
    """Return what the methods of a class can write on: it and its bases, and their variables."""
    found: list[Any] = [cls for cls in kind.__mro__ if not _is_others(cls)]
    for function in functions_run_by(kind):
        found += function.__closure__ or ()
        found += _variables(function.__globals__, function.__code__.co_names)
    return found


def functions_run_by(kind: type) -> Iterator[types.FunctionType]:
    """Yield the methods of a class of the host's, and the functions that they call by name."""
    classes = (cls for cls in kind.__mro__ if not _is_others(cls))
    pending = [each for cls in classes for each in vars(cls).values()]
    seen: set[int] = set()
    while pending:
        function = pending.pop()
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        if not _is_others(function):
            yield function
            scope, cells = function.__globals__, function.__closure__ or ()
            pending += [_content(each) for each in cells]
            pending += [scope[name] for name in function.__code__.co_names if name in scope]


def _is_others(value: Any) -> bool:
    return (value.__module__ or "").partition(".")[0] in _NOT_THE_HOSTS


def _variables(scope: dict[str, Any], names: Iterable[str]) -> list[_Variable]:
    """Return those of some globals that may be set anew or written on."""
    values = ((name, scope[name]) for name in names if name in scope)
    return [
        _Variable(scope, name)
        for name, value in values
        if not isinstance(value, (type, *_WHOLE)) or isinstance(value, (str, bytes))
    ]
