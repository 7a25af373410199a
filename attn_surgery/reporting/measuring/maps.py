"""The maps that some modules of a model take in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from attn_surgery.host import Input, floating_dtype
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.runner import made_input


class Map(NamedTuple):
    """What a module was given: all that decides how long it takes to go over it."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """How many bytes its elements are."""
        return self.shape.numel() * self.dtype.itemsize


def maps_taken(
    model: nn.Module, modules: Mapping[str, nn.Module], given: Input, conditions: Conditions
) -> dict[str, list[Map]]:
    """Run a model once; return what each of its modules was given, call by call.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> conditions = Conditions(torch.device("cpu"), batch_size=2)
        >>> taken = maps_taken(net, {"1": net[1]}, Input(((3, 8, 8),)), conditions)
        >>> taken["1"][0].shape, taken["1"][0].bytes
        (torch.Size([2, 8, 6, 6]), 2304)
    """
    with torch.no_grad(), _noted(modules) as taken, conditions.autocasting():
        args, kwargs = made_input(given, conditions, floating_dtype(model))
        model(*args, **kwargs)
    return taken


@contextmanager
def _noted(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Map]]]:
    taken: dict[str, list[Map]] = {name: [] for name in modules}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            taken[name].append(Map(args[0].shape, args[0].stride(), args[0].dtype))

        return note

    hooks = [each.register_forward_pre_hook(noting(name)) for name, each in modules.items()]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()
