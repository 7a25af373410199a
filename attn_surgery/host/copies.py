"""The copies that are counted and measured.

A model is never counted or measured itself: a copy of it is, whose tensors are elsewhere.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

M = TypeVar("M", bound=nn.Module)


def meta_copy(model: M) -> M:
    """Return a copy of ``model`` whose parameters and buffers are on the meta device.

    The weights are not copied on the way, so this costs no memory to speak of. Tensors that
    modules share stay shared.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> meta_copy(host).weight.device, host.weight.device
        (device(type='meta'), device(type='cpu'))
    """
    return _copy(model, lambda tensor: tensor.to("meta"))


def device_copy(model: M, device: torch.device) -> M:
    """Return a copy of ``model`` with its own parameters and buffers on ``device``.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> copied = device_copy(host, torch.device("cpu"))
        >>> copied.weight is host.weight, torch.equal(copied.weight, host.weight)
        (False, True)
    """
    return _copy(model, lambda tensor: tensor.to(device, copy=True))


def _copy(model: M, convert: Callable[[torch.Tensor], torch.Tensor]) -> M:
    # deepcopy takes what the memo holds for an id instead of copying the object.
    memo = {id(tensor): _converted(tensor, convert) for tensor in _tensors(model)}
    return copy.deepcopy(model, memo)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter, buffer and tensor attribute that has a shape."""
    for module in model.modules():
        owned = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        tensors = (value for value in owned if isinstance(value, torch.Tensor))
        yield from (tensor for tensor in tensors if not is_lazy(tensor))


def _converted(
    tensor: torch.Tensor, convert: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    copied = convert(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied
