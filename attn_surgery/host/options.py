"""The plain values by which a forward may go another way: other ones than those it goes by."""

from __future__ import annotations

import enum
import inspect
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

from attn_surgery.host.additions import functions_called
from attn_surgery.host.bytecode import read
from attn_surgery.host.called_method import parameters_of
from attn_surgery.host.plain_values import is_plain
from attn_surgery.host.restore import own_attributes, put_back_afterwards

MAX_OPTIONS = 32
"""How many other values are named of one module."""

_MAX_NUMBERS = 8


@dataclass(frozen=True)
class Option:
    """Another value for an argument of a forward, or for an attribute that it reads."""

    name: str
    value: Any
    is_argument: bool


def options(module: nn.Module) -> Iterator[Option]:
    """Yield other values that a module's forward may be given, or find in its attributes.

    A truth may be the other one, a member of an enumeration another, a number or a word one that
    the code names or one that finds a child. What is None, or has to be given after the first
    argument, may be any of these.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x, style="plain"):
        ...         return self.plain(x) if style == "plain" else self.fancy(x)
        >>> [(each.name, each.value) for each in options(Block())]
        [('style', 'fancy')]
    """
    return itertools.islice(_options(module), MAX_OPTIONS)


def _options(module: nn.Module) -> Iterator[Option]:
    codes = [function.__code__ for function in functions_called(module)]
    numbers, words = _numbers(module, codes), _words(module, codes)
    _, *arguments = [*parameters_of(module), None]
    for each in arguments:
        if each is not None and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            for value in _others(each.default, numbers, words):
                yield Option(each.name, value, is_argument=True)
    for name, now in _attributes(module, codes):
        for value in _others(now, numbers, words):
            yield Option(name, value, is_argument=False)


@contextmanager
def taken(module: nn.Module, option: Option) -> Iterator[None]:
    """Let an attribute have the other value for a while; of an argument nothing is done."""
    own, name = vars(module), option.name
    is_there, before = name in own, own.get(name)

    def put_back() -> None:
        if is_there:
            own[name] = before
        elif not option.is_argument:
            own.pop(name, None)

    with put_back_afterwards(put_back):
        if not option.is_argument:
            own[name] = option.value
        yield


def _others(now: Any, numbers: list[int], words: list[str]) -> list[Any]:
    """Return the values that may stand where ``now`` does."""
    if isinstance(now, bool):
        return [not now]
    if isinstance(now, enum.Enum):
        return [each for each in type(now) if each is not now]
    if now is None or now is inspect.Parameter.empty:
        return [True, *numbers, *words]
    known = numbers if isinstance(now, int) else words if isinstance(now, str) else ()
    return [each for each in known if each != now]


def _attributes(module: nn.Module, codes: Iterable[CodeType]) -> Iterator[tuple[str, Any]]:
    """Yield the plain attributes that are read, the module's own and its class's."""
    names = frozenset[str]().union(*(read(code).attributes for code in codes))
    found = dict(own_attributes(module))
    for cls in type(module).__mro__[: type(module).__mro__.index(nn.Module)]:
        found = {**vars(cls), **found}
    for name in sorted(names & found.keys()):
        if is_plain(found[name]):
            yield name, found[name]


def _numbers(module: nn.Module, codes: Iterable[CodeType]) -> list[int]:
    children = max(len(each._modules) for each in _with_containers(module))
    constants = (each for each in _constants(codes) if type(each) is int)
    return list(dict.fromkeys((*range(min(children, _MAX_NUMBERS)), *constants)))


def _words(module: nn.Module, codes: Iterable[CodeType]) -> list[str]:
    dicts = (each for each in _with_containers(module) if isinstance(each, nn.ModuleDict))
    constants = (
        each for each in _constants(codes) if isinstance(each, str) and each.isidentifier()
    )
    return list(dict.fromkeys((*(key for each in dicts for key in each), *constants)))


def _with_containers(module: nn.Module) -> list[nn.Module]:
    containers = (nn.ModuleList, nn.ModuleDict)
    return [module, *(each for each in module.children() if isinstance(each, containers))]


def _constants(codes: Iterable[CodeType]) -> Iterator[Any]:
    for code in codes:
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield from _constants([each])
            elif isinstance(each, (tuple, frozenset)):
                yield from each
            else:
                yield each
