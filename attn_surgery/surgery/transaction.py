"""All or nothing: whatever fails on the way, and wherever, the model is as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from torch import Tensor, fx, nn

from attn_surgery.host import Attributes
from attn_surgery.rewriting import replaced_by, set_class

T = TypeVar("T")


def all_or_nothing(
    model: nn.Module, change: Callable[[], T], overwritten: Iterable[Tensor] = ()
) -> T:
    """Call ``change``; if it raises, interrupts included, put the model back.

    This is a function and no context manager, since an interrupt can come after the last line of a
    ``with`` block. Let what calls it return its result at once, for the same reason.

    Args:
        model: Every module of it is put back: class, attributes, children and their order.
        change: What may change the model.
        overwritten: The tensors whose numbers it may change.

    Returns:
        What ``change`` returns.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> def change():
        ...     model.append(nn.Linear(2, 2))
        ...     raise KeyboardInterrupt
        >>> try:
        ...     all_or_nothing(model, change)
        ... except KeyboardInterrupt:
        ...     len(model)
        1
    """
    before = [_Before(module) for module in _modules(model)]
    numbers = _copies(overwritten)
    try:
        return change()
    except BaseException:
        for each in before:
            each.restore()
        _give_back(numbers)
        raise


def numbers_or_nothing(overwritten: Iterable[Tensor], change: Callable[[], T]) -> T:
    """Call ``change``, which changes nothing but numbers; if it raises, put them back."""
    numbers = _copies(overwritten)
    try:
        return change()
    except BaseException:
        _give_back(numbers)
        raise


def _copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(tensor.detach(), tensor.detach().clone()) for tensor in tensors]


def _give_back(numbers: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in numbers:
        tensor.copy_(values)


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model's modules, and those that an attention in it took the place of."""
    seen: set[nn.Module] = set()
    pending = [model]
    while pending:
        for module in pending.pop().modules():
            if module not in seen:
                seen.add(module)
                replaced = replaced_by(module)
                pending += replaced.modules.values() if replaced else ()
                yield module


class _Before:
    """What one module was."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.cls = type(module)
        self.attributes = Attributes(module)
        self.methods = self.data = ()
        if isinstance(module, fx.GraphModule):  # it writes them on its class, which is its own
            own = vars(self.cls)
            self.methods = [(name, own[name]) for name in _GENERATED if name in own]
        if replaced := replaced_by(
            module
        ):  # what comes back is moved, in place, to where the host is
            back = replaced.modules.values()
            self.data = [(tensor, tensor.data) for each in back for tensor in _tensors(each)]

    def restore(self) -> None:
        set_class(self.module, self.cls)
        self.attributes.restore()
        for name, method in self.methods:
            setattr(self.cls, name, method)
        for tensor, data in self.data:
            tensor.data = data


_GENERATED = ("forward", "__call__")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
