"""The plain values by which a forward may go another way: other ones than those it goes by."""

from __future__ import annotations

import enum
import inspect
import itertools
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attn_surgery.host.additions import functions_called
from attn_surgery.host.bytecode import read
from attn_surgery.host.called_method import parameters_of
from attn_surgery.host.plain_values import is_plain
from attn_surgery.host.restore import own_attributes, put_back_afterwards

MAX_OPTIONS = 64
"""How many other values are named of one module."""

_MAX_NUMBERS = 8
_MISSING = object()


@dataclass(frozen=True)
class Option:
    """Another value for an argument of a forward, or for an attribute that it reads."""

    name: str
    value: Any
    place: dict[str, Any] | None = None
    """Where the attribute stands: the module's own, or those of an object that it holds.

    None of an argument.
    """


def options(module: nn.Module) -> Iterator[Option]:
    """Yield other values that a module's forward may be given, or find in its attributes.

    A truth may be the other one, a member of an enumeration another, a number or a word one that
    the code names, one that finds a child, or one of which the code knows nothing. What is None,
    or has to be given after the first argument, may be any of these; a number or a word, none.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x, style="plain"):
        ...         return self.fancy(x) if style == "fancy" else self.plain(x)
        >>> [(each.name, each.value) for each in options(Block())]
        [('style', 'fancy'), ('style', 'fancy_'), ('style', None)]
    """
    return itertools.islice(_options(module), MAX_OPTIONS)


def _options(module: nn.Module) -> Iterator[Option]:
    codes = [function.__code__ for function in functions_called(module)]
    numbers, words = _numbers(module, codes), _words(module, codes)
    _, *arguments = [*parameters_of(module), None]
    for each in arguments:
        if each is not None and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            for value in _others(each.default, numbers, words):
                yield Option(each.name, value)
    for place, name, now in _attributes(module, codes):
        for value in _others(now, numbers, words):
            yield Option(name, value, place)


@contextmanager
def taken(option: Option) -> Iterator[None]:
    """Let an attribute have the other value for a while; of an argument nothing is done."""
    place, name = option.place, option.name
    if place is None:
        yield
        return
    before = dict.get(place, name, _MISSING)

    def put_back() -> None:  # past what a dict of the host's has to say to it
        if before is not _MISSING:
            dict.__setitem__(place, name, before)
        else:
            dict.pop(place, name, None)

    with put_back_afterwards(put_back):
        dict.__setitem__(place, name, option.value)
        yield


def _others(now: Any, numbers: list[int], words: list[str]) -> list[Any]:
    """Return the values that may stand where ``now`` does."""
    if isinstance(now, bool):
        return [not now]
    if isinstance(now, enum.Enum):
        return [each for each in type(now) if each is not now]
    if now is None or now is inspect.Parameter.empty:
        return [True, *numbers, *words]
    known = numbers if isinstance(now, (int, float)) else words if isinstance(now, str) else ()
    return [*(each for each in known if each != now), *([None] if known else ())]


def _attributes(
    module: nn.Module, codes: Iterable[types.CodeType]
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield the plain attributes that are read, each with where it stands.

    They are the module's own and its class's, and those of an object or a dict that it holds.
    """
    names = {name for code in codes for name in read(code).attributes}
    names |= {each for each in _constants(codes) if isinstance(each, str)}
    pending: list[object] = [module]
    for holder in pending:
        for place in _places(holder):
            found = _with_the_class(holder) if place is _own(holder) else place
            for name in sorted(each for each in names if dict.__contains__(found, each)):
                value = dict.__getitem__(found, name)
                if is_plain(value):
                    yield place, name, value
                elif _holds_values(value) and not any(value is each for each in pending):
                    pending.append(value)


def _places(holder: object) -> Iterator[dict[str, Any]]:
    """Yield the dicts in which what is read off an object may stand."""
    own = _own(holder)
    if isinstance(holder, dict):
        yield holder
    if own is None or own is holder:
        return
    yield own
    is_mapping = any(hasattr(type(holder), each) for each in ("__getattr__", "__getitem__"))
    if is_mapping and not isinstance(holder, nn.Module):
        yield from (each for each in own.values() if isinstance(each, dict))


def _own(holder: object) -> dict[str, Any] | None:
    return vars(holder) if type(holder).__dictoffset__ else None


def _with_the_class(holder: object) -> dict[str, Any]:
    """Return what stands in an object, and what its class has for what does not."""
    classes = itertools.takewhile(lambda cls: cls not in (nn.Module, object), type(holder).__mro__)
    own = own_attributes(holder) if isinstance(holder, nn.Module) else vars(holder).items()
    found = dict(own)
    for cls in classes:
        found = {**vars(cls), **found}
    return found


def _holds_values(value: object) -> bool:
    """Tell whether a value is an object or a dict from which others are read, as of settings."""
    others = (Tensor, nn.Module, type, types.FunctionType, types.ModuleType)
    is_object = type(value).__dictoffset__ and not isinstance(value, others)
    return isinstance(value, dict) or bool(is_object)


def _numbers(module: nn.Module, codes: Iterable[types.CodeType]) -> list[int]:
    children = max(len(each._modules) for each in _with_containers(module))
    constants = [each for each in _constants(codes) if type(each) is int]
    named = (*range(min(children, _MAX_NUMBERS)), *constants)
    return list(dict.fromkeys((*named, max(named, default=0) + 1, min(named, default=0) - 1)))


def _words(module: nn.Module, codes: Iterable[types.CodeType]) -> list[str]:
    dicts = (each for each in _with_containers(module) if isinstance(each, nn.ModuleDict))
    constants = (
        each for each in _constants(codes) if isinstance(each, str) and each.isidentifier()
    )
    named = (*(key for each in dicts for key in each), *constants)
    return list(dict.fromkeys((*named, max(named, default="", key=len) + "_")))


def _with_containers(module: nn.Module) -> list[nn.Module]:
    containers = (nn.ModuleList, nn.ModuleDict)
    return [module, *(each for each in module.children() if isinstance(each, containers))]


def _constants(codes: Iterable[types.CodeType]) -> Iterator[Any]:
    for code in codes:
        for each in code.co_consts:
            if isinstance(each, types.CodeType):
                yield from _constants([each])
            elif isinstance(each, (tuple, frozenset)):
                yield from each
            else:
                yield each
