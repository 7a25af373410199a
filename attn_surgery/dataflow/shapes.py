"""What is known of a tensor's shape: its layout, its channels, its number of spatial dims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from attn_surgery.dataflow.called_functions import argument, function_name
from attn_surgery.tracing import Trace

MAPS = "maps"
"""``(N, C, *spatial)``: channels at dim 1."""
LAST = "channels last"
"""Tokens ``(N, L, C)`` and ``(N, *spatial, C)``."""
BARE = "no channels"
"""``(N, *spatial)``: maps whose channels were reduced away."""


@dataclass(frozen=True)
class Shape:
    """What is known of a tensor: its layout, its channels, its number of spatial dims."""

    layout: str = ""
    channels: int | None = None
    spatial_dims: int | None = None
    is_spread: bool = False
    """Whether it holds one value per channel, ``(N, C, 1, ...)``, for broadcasting over space."""
    stacked: int | None = None
    """The dim along which tensors of this shape are stacked; None for a single one."""

    @property
    def is_known(self) -> bool:
        """Whether layout, channels and spatial dims are."""
        return bool(self.layout and self.channels and self.spatial_dims)

    @property
    def is_map(self) -> bool:
        """Whether it is known to be one of maps ``(N, C, *spatial)``, of how many channels."""
        return self.is_known and self.layout == MAPS and self.stacked is None

    @property
    def rank(self) -> int | None:
        """The number of dims, where it is known."""
        if not self.layout or self.spatial_dims is None:
            return None
        return self.spatial_dims + 1 + (self.layout != BARE) + (self.stacked is not None)

    @property
    def channel_dim(self) -> int | None:
        """The dim that holds the channels, where that is known."""
        if self.stacked is not None or self.layout not in (MAPS, LAST):
            return None
        if self.layout == MAPS:
            return 1
        return None if self.spatial_dims is None else self.spatial_dims + 1

    def at(self, dim: object) -> int | None:
        """Return the dim counted from the front; None where that is not known."""
        if not isinstance(dim, int) or isinstance(dim, bool):
            return None
        if dim >= 0:
            return dim
        return None if self.rank is None else self.rank + dim

    def is_channel_dim(self, dim: object) -> bool | None:
        """Tell whether ``dim`` holds the channels; None where that is not known."""
        if self.layout == LAST and dim == -1:
            return True
        place, channels = self.at(dim), self.channel_dim
        return None if place is None or channels is None else place == channels


UNKNOWN = Shape()


Known = Callable[[Any], Shape]
"""From an argument of a node to what is known of it."""


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """Return the shape of what an elementwise step makes of tensors of these shapes."""
    each = list(shapes)
    if len(each) == 1:
        return each[0] if each[0].layout else UNKNOWN
    wide = [shape for shape in each if not shape.is_spread] or each
    layouts = [shape for shape in wide if shape.layout]
    if not layouts:
        return UNKNOWN
    first = max(
        layouts, key=lambda shape: (bool(shape.channels), shape.layout == layouts[0].layout)
    )
    alike = [shape for shape in each if shape.layout == first.layout or not shape.layout]
    widths = {shape.channels for shape in alike}
    wider = widths - {1, None}
    channels = next(iter(wider)) if len(wider) == 1 else 1 if widths == {1} else None
    dims = [shape.spatial_dims for shape in alike if shape.spatial_dims]
    return Shape(
        first.layout,
        channels,
        max(dims, default=None),
        is_spread=all(shape.is_spread for shape in each),
        stacked=first.stacked,
    )


def stacked(shape: Shape, dim: object) -> Shape:
    """Return the shape of tensors along a new dim."""
    place = shape.at(dim)
    if isinstance(dim, int) and dim < 0:
        place = None if shape.rank is None else shape.rank + 1 + dim
    if place is None or shape.stacked is not None:
        return UNKNOWN
    return replace(shape, stacked=place)


def unstacked(shape: Shape, dim: object) -> Shape:
    """Return the shape of one of stacked tensors, of which ``dim`` was taken away."""
    is_there = shape.stacked is not None and shape.at(dim) == shape.stacked
    return replace(shape, stacked=None) if is_there else UNKNOWN


@dataclass(frozen=True)
class Step:
    """One node that makes a value, with what the rule for its shape looks at."""

    trace: Trace
    node: fx.Node
    inputs: Sequence[fx.Node]
    known: Known

    @property
    def module(self) -> nn.Module | None:
        """The module that the node calls, if any."""
        return self.trace.called_module(self.node)

    @property
    def shape(self) -> Shape:
        """What is known of the value that the node works on."""
        return self.known(self.inputs[0])

    @property
    def name(self) -> str:
        """What torch calls the node's function or module."""
        module = self.module
        return function_name(self.node) if module is None else torch_name(module).lower()

    def asked(self, position: int, name: str) -> Any:
        """Return an argument of the function, or the attribute of the module."""
        module = self.module
        if module is not None:
            return getattr(module, name, None)
        return argument(self.node, position, name)

    def listed(self) -> tuple[Any, ...]:
        """Return the arguments after the first, given one by one or as one sequence."""
        rest = self.node.args[1:]
        if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
            return tuple(rest[0])
        return rest


def torch_name(module: nn.Module) -> str:
    """Return the name of the class of torch's that the module is of."""
    names = (
        c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.")
    )
    return next(names, "")


def norm_dims(module: nn.Module) -> int | None:
    """Return the number of spatial dims that a batch or instance norm is made for."""
    digit = next((c for c in reversed(torch_name(module)) if c.isdigit()), None)
    return int(digit) if digit else None
