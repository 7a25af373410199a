"""What a forward is told where it asks whether a traced value is a tensor, and of which type."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.host import functions_run_by, put_back_afterwards
from attn_surgery.tracing.module_calls import remembered
from attn_surgery.tracing.proxies import Value, ValueWithClass, kind_of


@contextmanager
def taken_for_tensors(tracer: Any, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let the methods of these modules see tensors where they ask what values are.

    Nobody else may: torch's own code would take what is told to be a tensor for one. So the
    functions that are asked are changed where the host's code looks them up.
    """
    kinds = {type(module) for module in modules}
    asking = [remembered((_Asking, cls), functools.partial(_Asking, cls)) for cls in kinds]
    found = {id(scope): scope for each in asking for scope in each.scopes}
    if any(each.reads_class for each in asking):
        tracer.value_class = ValueWithClass
    places = [
        (scope, name, answer)
        for scope in found.values()
        for name, asked, answer in _ANSWERS
        if scope.get(name, asked) is asked
    ]
    places += [(vars(module), name, answer) for module, name, answer in _ASKED_IN_TORCH]
    before = [(scope, name, scope.get(name, _MISSING)) for scope, name, _ in places]

    def put_back() -> None:
        for scope, name, value in before:
            if value is _MISSING:
                scope.pop(name, None)
            else:
                scope[name] = value

    with put_back_afterwards(put_back):
        for scope, name, answer in places:
            scope[name] = answer
        yield


class _Asking:
    """Where the methods of a class, and the functions that they call, ask what values are.

    Attributes:
        scopes: Their globals.
        reads_class: Whether ``__class__`` may be read of a value.
    """

    def __init__(self, kind: type):
        functions = list(functions_run_by(kind))
        dispatching = (each for cls in kind.__mro__ for each in vars(cls).values())
        self.scopes = [
            each.__globals__ for each in functions if not _ASKING.isdisjoint(each.__code__.co_names)
        ]
        self.reads_class = any(
            "__class__" in each.__code__.co_names or _dispatches(each) for each in functions
        ) or any(isinstance(each, functools.singledispatchmethod) for each in dispatching)


def _dispatches(function: types.FunctionType) -> bool:
    """Tell whether a function goes by the class of its first argument."""
    return "registry" in vars(function)


def _is_instance(value: Any, kinds: Any) -> bool:
    if isinstance(value, Value):
        return issubclass(kind_of(value.node), kinds)
    return isinstance(value, kinds)


def _is_tensor(value: Any) -> bool:
    return _is_instance(value, Tensor)


def _is_scripts_instance(value: Any, kind: Any) -> bool:
    if isinstance(value, Value):
        return kind is kind_of(value.node)
    return _torchs_isinstance(value, kind)


_torchs_isinstance = torch.jit.isinstance


class _Asked(type):
    """The type of what takes the place of ``type``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Value):
            return kind_of(args[0].node)
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)


class _Type(type, metaclass=_Asked):
    """Stands for ``type`` in the host's code."""


_MISSING = object()
_ANSWERS = (
    ("isinstance", isinstance, _is_instance),
    ("type", type, _Type),
    ("is_tensor", torch.is_tensor, _is_tensor),
)
"""Under which name something is asked, what it is, and what answers in its place."""
_ASKING = frozenset(name for name, *_ in _ANSWERS)
_ASKED_IN_TORCH = (
    (torch, "is_tensor", _is_tensor),
    (torch.jit, "isinstance", _is_scripts_instance),
)
