"""What an attention does to its maps, told by what goes in and what comes out alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Gate:
    """What one attention did to the maps of one image.

    A gate is a least-squares gain, ``<out, in> / <in, in>``: of all multiples of what went in, the
    one that is closest to what came out. Of an attention that multiplies it is the factor, the mean
    over a map weighted by its squares; where an attention adds, it is what of that lies along the
    map, and ``change`` has the rest, too. Where all that went in is zero there is no gain: NaN.

    Attributes:
        channel: Of each channel, over all positions, ``(C,)``. An attention that runs several
            times in a forward pass has the gain over all of its calls.
        position: Of each position, over all channels, ``(*spatial)``; of the first call, where
            there are several. None where the maps are not those of one image.
        change: ``|out - in| / |in|`` over everything; NaN where all that went in is zero.
    """

    channel: Numbers
    position: Numbers | None
    change: float

    @property
    def position_range(self) -> tuple[float, float] | None:
        """The least and the greatest gate of a position; None where none is known."""
        if self.position is None or numpy.isnan(self.position).all():
            return None
        return float(numpy.nanmin(self.position)), float(numpy.nanmax(self.position))


class GateMeter:
    """Adds up what goes into one attention, and what comes out."""

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._position: Numbers | None = None

    def before(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        """Keep what goes in; a copy, as an attention may work in place."""
        self._given.append(given[0].detach().clone())

    def after(self, _: nn.Module, __: tuple[Any, ...], returned: Tensor) -> None:
        """Count one call."""
        given = self._given.pop().cpu().double()
        out = returned.detach().cpu().double()
        products = torch.stack([out * given, given.square(), (out - given).square()])
        if not self._sums and given.shape[0] == 1:
            self._position = _ratio(products[0].sum(1)[0], products[1].sum(1)[0]).numpy()
        self._sums.append(products.sum([1, *range(3, products.dim())]))

    def gate(self) -> Gate | None:
        """Return what was found; None if the attention did not run."""
        if not self._sums:
            return None
        along, power, change = torch.stack(self._sums).sum(0)
        moved = _ratio(change.sum(), power.sum()).sqrt().item()
        return Gate(_ratio(along, power).numpy(), self._position, moved)


def _ratio(along: Tensor, power: Tensor) -> Tensor:
    return torch.where(power > 0, along / power, torch.nan)


@contextmanager
def metered(attentions: Mapping[str, nn.Module]) -> Iterator[Callable[[], dict[str, Gate]]]:
    """Watch attentions over one forward pass of one image; yield what tells their gates.

    Args:
        attentions: Path -> attention. Those that do not run are left out of what is told.

    Example:
        >>> double = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        >>> _ = nn.init.constant_(double.weight, 2.0)
        >>> with metered({"double": double}) as gates:
        ...     _ = double(torch.ones(1, 3, 4, 4))
        >>> gate = gates()["double"]
        >>> gate.channel.tolist(), gate.position.shape, gate.change
        ([2.0, 2.0, 2.0], (4, 4), 1.0)
    """
    meters = {path: GateMeter() for path in attentions}

    def gates() -> dict[str, Gate]:
        found = {path: meter.gate() for path, meter in meters.items()}
        return {path: gate for path, gate in found.items() if gate is not None}

    with ExitStack() as stack:
        for path, attention in attentions.items():
            stack.enter_context(attention.register_forward_pre_hook(meters[path].before))
            stack.enter_context(attention.register_forward_hook(meters[path].after))
        yield gates
