"""What attention there is, what it costs on one map, and which of it does not work here.

The costs are those of the attention itself, built with ``init="paper"`` and its default options for
256 channels, on one 256 x 14 x 14 map. An attention that gets its identity start from outside has
one more parameter with it and three more elementwise operations an element.

Whether an attention works is not looked up but tried, with the libraries that are installed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate
from torch import nn

from attn_surgery.attention import available, build, entry
from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import undisturbed_randomness
from attn_surgery.reporting.costs import count_params
from attn_surgery.reporting.counting import Work, count_work

CHANNELS = 256
MAP = (CHANNELS, 14, 14)

_HEAD = (
    "name",
    "paper",
    f"params (C = {CHANNELS})",
    "MACs on " + " x ".join(map(str, MAP)),
    "elementwise ops",
    "dims",
    "fault",
)


@dataclass(frozen=True)
class Listing:
    """What is known of one attention.

    Attributes:
        name: The registered name.
        paper: The publication; "" where none was given.
        params: Number of parameters at 256 channels; None if it cannot be built.
        macs: Multiply-adds on one 256 x 14 x 14 map; None where it takes no 2-D maps.
        elementwise_ops: Elementwise and reduction operations on that map.
        dims: The numbers of spatial dimensions of the maps that it works on.
        fault: Why it does not work, or not on all that it says; "" if nothing is wrong.
    """

    name: str
    paper: str
    params: int | None
    macs: int | None
    elementwise_ops: int | None
    dims: tuple[int, ...]
    fault: str = ""


def catalogue() -> list[Listing]:
    """Try every registered attention; the list is in the order of ``available()``.

    Example:
        >>> known = {listing.name: listing for listing in catalogue()}
        >>> known["se"].params, known["se"].dims, known["se"].paper
        (8464, (1, 2, 3), 'Hu et al. 2018, arXiv:1709.01507')
        >>> known["simam"].macs, known["simam"].elementwise_ops / 256 / 14 / 14 > 5
        (0, True)
    """
    with undisturbed_randomness():
        return [_listing(name) for name in available()]


def listing_table(listings: Iterable[Listing]) -> str:
    """Return the catalogue as an aligned table.

    Example:
        >>> table = listing_table([Listing("x", "", 12345, 0, None, (1, 2))])
        >>> table.splitlines()[-1].split()
        ['x', '12,345', '0', '-', '1,', '2']
    """
    rows = [
        (
            each.name,
            each.paper,
            _number(each.params),
            _number(each.macs),
            _number(each.elementwise_ops),
            ", ".join(map(str, each.dims)),
            each.fault,
        )
        for each in listings
    ]
    align = ("left", "left", "right", "right", "right", "left", "left")
    return tabulate(rows, _HEAD, colalign=align, disable_numparse=True)


def _listing(name: str) -> Listing:
    known = entry(name)
    built, faults = _tried(name, known.dims or (1, 2, 3))
    if known.dims is None and built:
        faults = []  # the dimensions that it was never said to work in
    work: Work | None = None
    if 2 in built:
        try:
            work = count_work(built[2], MAP).total
        except Exception as error:
            faults.append(f"not counted: {one_line(error)}")
    return Listing(
        name=name,
        paper=known.paper,
        params=count_params(built[2 if 2 in built else min(built)]) if built else None,
        macs=work.macs if work else None,
        elementwise_ops=work.elementwise_ops if work else None,
        dims=tuple(built),
        fault="; ".join(dict.fromkeys(faults)),
    )


def _tried(name: str, dims: Iterable[int]) -> tuple[dict[int, nn.Module], list[str]]:
    """Build an attention for each number of dimensions; return what was built, and why not."""
    built, faults = {}, []
    for spatial_dims in dims:
        try:
            built[spatial_dims] = build(name, CHANNELS, spatial_dims=spatial_dims, init="paper")
        except SurgeryError as error:
            faults.append(one_line(error.__cause__ or error).removeprefix("SurgeryError: "))
    return built, faults


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
