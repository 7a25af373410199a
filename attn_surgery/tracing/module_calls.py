"""Calls of modules and what is read off them, handed to the tracer at work in this thread.

``torch.fx`` writes on ``torch.nn.Module`` itself when a trace begins and when it ends. Python then
goes through every class that derives from it, of which timm and torchvision make thousands, so that
this takes longer than tracing a block. Here it is written on once for all traces of a plan.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import fx, nn
from torch.fx import _symbolic_trace

from attn_surgery.host import put_back_afterwards
from attn_surgery.tracing.proxies import NUMBER

T = TypeVar("T")


class _AtWork(threading.local):
    tracer: Any = None


_at_work = _AtWork()
_lock = threading.RLock()


@contextmanager
def modules_intercepted() -> Iterator[None]:
    """Let tracers know of modules' calls; within another of its kind it does nothing more."""
    with _lock:
        if hasattr(nn.Module.__call__, _PATCHED):
            yield
            return
        originals = [getattr(cls, name) for cls, name, _ in _INTERCEPTED]

        def put_back() -> None:
            _remembered.clear()
            for (cls, name, _), original in zip(_INTERCEPTED, originals, strict=True):
                setattr(cls, name, original)

        with put_back_afterwards(put_back):
            for (cls, name, told), original in zip(_INTERCEPTED, originals, strict=True):
                setattr(cls, name, told(original))
            yield


def remembered(key: object, make: Callable[[], T]) -> T:
    """Return what was made for a key while modules are intercepted, or make it.

    The code of the host stays what it is as long as that.
    """
    with _lock:
        if not hasattr(nn.Module.__call__, _PATCHED):
            return make()
        if key not in _remembered:
            _remembered[key] = make()
        return _remembered[key]


_remembered: dict[object, Any] = {}


@contextmanager
def at_work(tracer: Any) -> Iterator[None]:
    """Let the tracer be the one that is told."""
    before = _at_work.tracer

    def put_back() -> None:
        _at_work.tracer = before

    with put_back_afterwards(put_back):
        _at_work.tracer = tracer
        yield


def tracer_at_work() -> Any:
    """Return the tracer that is told in this thread, if there is one."""
    return _at_work.tracer


_PATCHED = "__fx_already_patched"
"""By this fx knows that it has nothing to write: it would otherwise, all the same."""


def _called(original: Any) -> Any:
    @functools.wraps(original)
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tracer = _at_work.tracer
        if tracer is None:
            return original(module, *args, **kwargs)
        names = getattr(getattr(module, "forward", module), "__globals__", {})
        patcher: Any = _symbolic_trace.CURRENT_PATCHER
        _symbolic_trace._autowrap_check(patcher, names, tracer._autowrap_function_ids)
        return tracer.call_module(module, functools.partial(original, module), args, kwargs)

    setattr(call, _PATCHED, True)
    return call


def _item(original: Any) -> Any:
    @functools.wraps(original)
    def item(container: Any, key: Any) -> Any:
        tracer = _at_work.tracer
        if tracer is not None and _is_unknown(tracer, key, container):
            return tracer.one_of(container)
        return original(container, key)

    return item


def _is_unknown(tracer: Any, key: Any, container: Any) -> bool:
    """Tell whether a key is a traced value, or a number given for one that leads nowhere."""
    if isinstance(key, fx.Proxy):
        return True
    has_guessed = tracer.stack[-1].module in tracer.branched
    return has_guessed and key == NUMBER and len(container) <= NUMBER


def _contains(original: Any) -> Any:
    @functools.wraps(original)
    def contains(container: Any, key: Any) -> bool:
        if _at_work.tracer is not None and isinstance(key, fx.Proxy):
            return bool(key)  # it may be, and it may not: as the truth of any traced value
        return original(container, key)

    return contains


def _read(original: Any) -> Any:
    @functools.wraps(original)
    def read(module: nn.Module, name: str) -> Any:
        tracer = _at_work.tracer
        if tracer is None:
            return original(module, name)
        plain = tracer.plain_tensors.get(id(vars(module)), {})
        value = plain[name] if name in plain else original(module, name)
        if value is None:  # a parameter or a child that may be set later
            tracer.foreign.note(module, name, value)
        return tracer.getattr(name, value, {})

    setattr(read, _PATCHED, True)
    return read


_INTERCEPTED: tuple[tuple[type[nn.Module], str, Callable[[Any], Any]], ...] = (
    (nn.Module, "__call__", _called),
    (nn.Module, "__getattr__", _read),
    (nn.ModuleList, "__getitem__", _item),
    (nn.ModuleDict, "__getitem__", _item),
    (nn.Sequential, "__getitem__", _item),
    (nn.ModuleDict, "__contains__", _contains),
)
"""The methods of torch's that tell the tracer while modules are intercepted, and what tells it."""
