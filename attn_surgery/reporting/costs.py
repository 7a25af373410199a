"""The counted part of a row, and its breakdown by block."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import Input
from attn_surgery.planning import Site
from attn_surgery.reporting.counting import Work, Workload, count_copy, count_saved_bytes
from attn_surgery.reporting.rows import Row, SiteCost


@dataclass(frozen=True)
class Counted:
    """A row with its counts, and what they consist of.

    Attributes:
        row: The row.
        params: Block path to the parameters in that block alone; None is everything else.
        work: Block path to the work of that block alone; None where the forward failed.
        notes: What a reader of the row has to know.
    """

    row: Row
    params: Mapping[str | None, int]
    work: Mapping[str | None, Work] | None
    notes: tuple[str, ...]


def count(row: Row, copied: nn.Module, given: Input, blocks: Collection[str] = ()) -> Counted:
    """Fill in everything that is counted.

    Args:
        row: With names.
        copied: The model on the meta device; it is not as it was afterwards.
        given: The input.
        blocks: Paths of the blocks that are told apart.

    Raises:
        SurgeryError: The input cannot be made.

    Example:
        >>> net = nn.Conv2d(3, 8, 1).to("meta")
        >>> counted = count(Row("net", None, 0, None, None), net, Input(((3, 10, 10),)))
        >>> counted.row.params, counted.row.macs, counted.row.saved_bytes
        (32, 2400, 1200)
    """
    row = replace(row, params=count_params(copied))
    params = params_by_block(copied, blocks)
    try:
        load = count_copy(copied, given, blocks)
    except SurgeryError:
        raise
    except Exception as error:
        reason = f"not counted, the forward failed for an input of {given} on the meta device"
        return Counted(replace(row, error=f"{reason}: {one_line(error)}"), params, None, ())
    total = load.total
    row = replace(
        row,
        macs=total.macs,
        elementwise_ops=total.elementwise_ops,
        bytes_moved=total.bytes_moved,
    )
    row, saved_notes = _with_saved_bytes(row, copied, given)
    return Counted(row, params, load.by_block, (*_notes(row.model, load), *saved_notes))


def _with_saved_bytes(row: Row, copied: nn.Module, given: Input) -> tuple[Row, tuple[str, ...]]:
    try:
        return replace(row, saved_bytes=count_saved_bytes(copied, given)), ()
    except Exception as error:
        # Detection models, for one, want targets in training mode.
        note = (
            f"{row.model}: memory saved for backward is not counted, the forward failed in "
            f"training mode: {one_line(error)}"
        )
        return row, (note,)


def _notes(model: str, load: Workload) -> list[str]:
    notes = []
    if load.assumed:
        notes.append(
            f"{model}: an upper bound, as what depends on the data was assumed: every box passes "
            f"({', '.join(load.assumed)})"
        )
    if load.unknown:
        notes.append(
            f"{model}: no rule for {', '.join(load.unknown)}; 1 operation counted for each element "
            "written"
        )
    return notes


def params_by_block(model: nn.Module, blocks: Collection[str]) -> dict[str | None, int]:
    """Return the number of parameters of each block, without those of blocks inside it.

    Example:
        >>> params_by_block(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), ["1"])
        {None: 9, '1': 4}
    """
    found: dict[str | None, int] = {}
    for path, parameter in model.named_parameters():
        block = innermost(path, blocks)
        found[block] = found.get(block, 0) + parameter.numel()
    return found


def innermost(path: str | None, blocks: Collection[str]) -> str | None:
    """Return the deepest of the blocks that ``path`` is or is in."""
    if path is None:
        return None
    parts = path.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next((each for each in above if each in blocks), None)


def site_costs(host: Counted, variant: Counted, sites: Iterable[Site]) -> list[SiteCost]:
    """Return what a variant adds to its host, block by block; the sums equal the rows' differences.

    Args:
        host: Counted with the same blocks as the variant.
        variant: The host with attention.
        sites: The variant's; their blocks are told apart, all others are "elsewhere".
    """
    afters: dict[str | None, list[str]] = {}
    for site in sites:
        afters.setdefault(site.block, []).append(site.after)
    own = {path for path in afters if path is not None}
    if host.work is None or variant.work is None:
        return []
    params, work = dict.fromkeys([*afters, None], 0), dict.fromkeys([*afters, None], Work())
    for sign, side in ((1, variant.params), (-1, host.params)):
        for path, number in side.items():
            params[innermost(path, own)] += sign * number
    for path, spent in variant.work.items():
        work[innermost(path, own)] += spent
    for path, spent in host.work.items():
        work[innermost(path, own)] -= spent
    row = variant.row
    return [
        SiteCost(
            row.model,
            row.attention or "",
            path,
            tuple(afters.get(path, ())),
            params[path],
            work[path].macs,
            work[path].elementwise_ops,
            work[path].bytes_moved,
        )
        for path in params
        if path is not None or params[path] or work[path] != Work()
    ]


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; a shared one counts once.

    Example:
        >>> count_params(nn.Linear(2, 3))
        9
    """
    return sum(parameter.numel() for parameter in model.parameters())
