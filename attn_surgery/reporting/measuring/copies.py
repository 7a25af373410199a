"""What the traffic takes that no attention can do without: each map read once and written once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from attn_surgery.host import Input
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.maps import Map, maps_taken


class Copies:
    """A call that copies maps, one after the other, through the same memory.

    Args:
        maps: The maps.
        device: Where they are.
        train: Move what a training step has to move, too: backwards the map and its gradient are
            read and another gradient is written, so that a map is gone over five times, not two.
    """

    def __init__(self, maps: Iterable[Map], device: torch.device, *, train: bool = False):
        self._sizes = [each.bytes for each in maps]
        self._train = train
        longest = max(self._sizes, default=0)
        self._one = torch.zeros(longest, dtype=torch.uint8, device=device)
        self._other = torch.zeros_like(self._one)

    def __call__(self) -> None:
        """Copy them all."""
        for size in self._sizes:
            self._other[:size].copy_(self._one[:size])
            if self._train:
                self._one[:size].copy_(self._other[:size])
                self._other[: size // 2].copy_(self._one[: size // 2])


def copies_of_maps(
    build: Callable[[], nn.Module],
    parts: Callable[[nn.Module], Mapping[str, nn.Module]],
    given: Input,
    conditions: Conditions,
    *,
    train: bool = False,
) -> Copies:
    """Return what copies the maps that modules of a model take in one pass.

    Args:
        build: Makes a copy of the model on the device.
        parts: Returns the modules of a model, by name.
        given: The input of the model.
        conditions: Where and how.
        train: As for `Copies`.

    Example:
        >>> build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> conditions = Conditions(torch.device("cpu"))
        >>> given, parts = Input(((3, 8, 8),)), lambda net: {"1": net[1]}
        >>> copies_of_maps(build, parts, given, conditions)()
    """
    model = conditions.converted(build()).eval()
    taken = maps_taken(model, parts(model), given, conditions)
    maps = (each for several in taken.values() for each in several)
    return Copies(maps, conditions.device, train=train)
