"""A module that runs with other tensors than its own for a while, where a copy might not be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attn_surgery.host.reachable_state import ReachableState
from attn_surgery.host.restore import Attributes, put_back_afterwards


@contextmanager
def lent_tensors(module: nn.Module, lend: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module hold other tensors; what it writes on meanwhile is put back with its own.

    Args:
        module: It and those below it: parameters, buffers and tensor attributes are lent.
        lend: Gets each tensor, detached, and returns the one that is there in its place.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> with lent_tensors(linear, lambda tensor: tensor.to("meta")):
        ...     linear.weight.device
        device(type='meta')
        >>> linear.weight.device
        device(type='cpu')
    """
    modules = list(module.modules())
    before = [Attributes(each) for each in modules]
    reached = ReachableState().of(modules)

    def put_back() -> None:
        for each in (*before, reached):
            each.restore()

    with put_back_afterwards(put_back):
        for each in modules:
            for held in (each._parameters, each._buffers, vars(each)):
                _exchange(held, lend)
        yield


def _exchange(held: dict[str, Any], lend: Callable[[Tensor], Tensor]) -> None:
    for name, value in held.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            continue
        held[name] = lend(value.detach())
        if isinstance(value, nn.Parameter):
            held[name] = nn.Parameter(held[name], requires_grad=value.requires_grad)
