"""What modules hold and a trace must not touch: their plain tensors and their iterators."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attn_surgery.host import own_attributes, put_back_afterwards, refill


@contextmanager
def set_aside(tracer: Any, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let plain tensors be read in the graph, as buffers are, and iterators go on as copies.

    A plain tensor is taken off its module meanwhile, so that what reads it asks the tracer, which
    keeps it in ``plain_tensors``; one that hides an attribute of the class, `shown` in its place.
    """
    held = [
        (module, name, value)
        for module in modules
        for name, value in own_attributes(module)
        if isinstance(value, Tensor) or _is_iterator(value)
    ]
    plain = {id(vars(module)): {} for module, _, value in held if isinstance(value, Tensor)}
    before = {module: dict(vars(module)) for module, *_ in held}

    def put_back() -> None:
        for module, attributes in before.items():
            refill(vars(module), attributes)

    with put_back_afterwards(put_back):
        for module, name, value in held:
            own = vars(module)
            if not isinstance(value, Tensor):
                own[name] = _again(value)
                continue
            plain[id(own)][name] = value
            if hasattr(type(module), name):
                tracer.hiding.append((own, name))
            else:
                del own[name]
        tracer.plain_tensors = plain
        yield


@contextmanager
def shown(tracer: Any) -> Iterator[None]:
    """Let those plain tensors that hide attributes of their classes be traced values, too."""
    hidden = [
        (own, name, own[name], tracer.getattr(name, own[name], {})) for own, name in tracer.hiding
    ]

    def put_back() -> None:
        for own, name, tensor, stand_in in hidden:
            if own.get(name) is stand_in:
                own[name] = tensor

    with put_back_afterwards(put_back):
        for own, name, _, stand_in in hidden:
            own[name] = stand_in
        yield


def _is_iterator(value: Any) -> bool:
    return hasattr(type(value), "__next__") and not isinstance(value, nn.Module)


def _again(iterator: Any) -> Any:
    """Return an iterator that goes on where this one is, or this one where none can be made."""
    try:
        return copy.copy(iterator)
    except TypeError:  # a generator
        return iterator
