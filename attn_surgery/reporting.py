"""What an attention costs in a host: parameters and multiply-adds, before any surgery is done.

Everything is measured on copies on the meta device; the host is not touched. What the MACs count,
and what they leave out, is said in `attn_surgery.counting`. `Row.elementwise_ops`, `bytes_moved`,
`saved_bytes`, `latency_ms` and `latency_ratio` are None: not measured.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from attn_surgery.counting import count_macs, count_params, guess_input_size, meta_copy
from attn_surgery.errors import SurgeryError
from attn_surgery.models import one_line
from attn_surgery.sites import Plan
from attn_surgery.surgery import apply, plan

Attention = str | Callable[..., nn.Module] | Mapping[str, Any]

_HEAD = (
    "model", "attention", "sites",
    "params (M)", "added", "added %",
    "MACs (G)", "added %",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The costs of one host, or of one host with one attention; None is "not measured".

    Attributes:
        model: Name of the host.
        attention: Name of the attention; None in the host's own row.
        sites: Number of blocks that get the attention.
        params: Number of parameters; a shared one counts once.
        macs: Multiply-adds of one forward pass of one input, in evaluation mode.
        elementwise_ops: Elementwise and reduction operations of that pass.
        bytes_moved: Bytes that those operations read and write.
        saved_bytes: Bytes kept for the backward pass.
        latency_ms: Median time of one forward pass.
        latency_ratio: Median of the paired ratios to the host's time.
        error: Why something in this row is missing; None if nothing went wrong.
    """

    model: str
    attention: str | None
    sites: int
    params: int | None
    macs: int | None
    elementwise_ops: int | None = None
    bytes_moved: int | None = None
    saved_bytes: int | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """Rows of one or more hosts, each host's own row before its variants.

    Attributes:
        rows: The rows.
        input_sizes: Model name to the shape of the one input counted, ``(C, *spatial)``.
    """

    rows: tuple[Row, ...]
    input_sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, reports: Iterable["Report"]) -> "Report":
        """Return one report with the rows of all."""
        reports = tuple(reports)
        rows = tuple(row for part in reports for row in part.rows)
        sizes = {name: size for part in reports for name, size in part.input_sizes.items()}
        return cls(rows, sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers, ready for ``json.dumps``."""
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "input_sizes": {name: list(size) for name, size in self.input_sizes.items()},
        }

    def __str__(self) -> str:
        table = tabulate(
            _table_rows(self.rows),
            headers=_HEAD,
            disable_numparse=True,
            colalign=("left", "left", *["right"] * (len(_HEAD) - 2)),
        )
        errors = [f"{_title(row)}: {row.error}" for row in self.rows if row.error]
        return "\n".join([table, "", *_notes(self.input_sizes), *errors])


def report(
    model: nn.Module,
    attention: Attention | Sequence[Attention] = ("se", "cbam"),
    *,
    input_size: Sequence[int] | None = None,
    name: str | None = None,
    where: Any = None,
    position: str = "standard",
    existing: str = "skip",
    **options: Any,
) -> Report:
    """Tell what each attention would cost in ``model``.

    Args:
        model: The host; left as it is, in whatever mode and on whatever device.
        attention: One attention or several, each as `attn_surgery.apply` takes it.
        input_size: Shape of one input, ``(C, *spatial)``; by default what a timm model says, else
            a guess from the first convolution.
        name: What to call the host in the table; by default the name of its class.
        where: As for `attn_surgery.apply`.
        position: As for `attn_surgery.apply`.
        existing: As for `attn_surgery.apply`.
        **options: For every attention.

    Returns:
        The host's row, then one row for each attention. A row that could not be completed says so
        in `Row.error`.

    Raises:
        SurgeryError: The input size is no shape, or a plan cannot be made as asked.
    """
    name = name or type(model).__name__
    host = _copied(model, name)
    size = _checked_size(guess_input_size(host) if input_size is None else input_size)
    attentions = _as_list(attention)
    asked = {"where": where, "position": position, "existing": existing, **options}
    plans = [plan(host, one, **asked) for one in attentions]
    host_row = _measured(Row(name, None, 0, count_params(host), None), host, size)
    with torch.random.fork_rng(devices=[]):  # an attention that is built draws its start
        variants = [
            _variant_row(host_row, host, one, planned, size, asked)
            for one, planned in zip(attentions, plans, strict=True)
        ]
    return Report((host_row, *variants), {name: size})


def format_size(size: Sequence[int]) -> str:
    """Write a shape as people do.

    Example:
        >>> format_size((3, 224, 224))
        '3x224x224'
    """
    return "x".join(map(str, size))


# Rows


def _copied(model: nn.Module, name: str) -> nn.Module:
    try:
        return meta_copy(model)
    except Exception as error:
        raise SurgeryError(f"{name} cannot be copied to be counted: {one_line(error)}") from error


def _variant_row(
    host_row: Row,
    host: nn.Module,
    attention: Attention,
    planned: Plan,
    size: tuple[int, ...],
    asked: dict[str, Any],
) -> Row:
    row = replace(host_row, attention=_label(attention), sites=len(planned.sites), error=None)
    if not planned.sites:
        return replace(row, error=_why_no_sites(planned))
    try:
        variant = apply(meta_copy(host), attention, **asked)
    except Exception as error:
        return replace(row, params=None, macs=None, error=one_line(error))
    return _measured(replace(row, params=count_params(variant)), variant, size)


def _measured(row: Row, model: nn.Module, size: tuple[int, ...]) -> Row:
    try:
        return replace(row, macs=count_macs(model, size))
    except Exception as error:
        reason = (
            f"no MACs, the forward failed for an input of {format_size(size)} on the meta device"
        )
        return replace(row, macs=None, error=f"{reason}: {one_line(error)}")


def _why_no_sites(planned: Plan) -> str:
    if not planned.skipped:
        return "nothing inserted: no residual block found"
    first = planned.skipped[0]
    return (
        f"nothing inserted: all {len(planned.skipped)} sites are skipped "
        f"(first: {first.block or '(root)'}: {first.reason})"
    )


def _checked_size(size: Sequence[int]) -> tuple[int, ...]:
    sound = not isinstance(size, str) and all(isinstance(n, int) and n > 0 for n in size)
    if not sound or len(size) < 2:
        raise SurgeryError(
            f"input_size {size!r} is no shape; give channels and sides, as in (3, 224, 224)"
        )
    return tuple(size)


def _as_list(attention: Attention | Sequence[Attention]) -> list[Attention]:
    if isinstance(attention, (str, Mapping)) or callable(attention):
        return [attention]
    return list(attention)


def _label(attention: Attention) -> str:
    if isinstance(attention, str):
        return attention
    if isinstance(attention, Mapping):
        return ", ".join(f"{pattern}: {_label(one)}" for pattern, one in attention.items())
    return getattr(attention, "__name__", type(attention).__name__)


# Table


def _table_rows(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    host: Row | None = None
    lines = []
    for row in rows:
        if row.attention is None:
            host = row
        lines.append(_table_row(row, None if row is host else host))
    return lines


def _notes(input_sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Say what was counted: one line, or one for each model where the inputs differ."""
    suffix = "in evaluation mode; 1 MAC = 1 multiply-add of a convolution or a matrix product"
    texts = {name: f"one input of {format_size(size)}" for name, size in input_sizes.items()}
    if len(set(texts.values())) == 1:
        return [f"{text} {suffix}" for text in set(texts.values())]
    return [f"{name}: {text} {suffix}" for name, text in texts.items()]


def _table_row(row: Row, host: Row | None) -> tuple[str, ...]:
    extra = None if host is None else _difference(row.params, host.params)
    return (
        row.model,
        row.attention or "-",
        "-" if row.attention is None else str(row.sites),
        "-" if row.params is None else f"{row.params / 1e6:.3f}",
        "" if extra is None else f"{extra:+,}",
        "" if host is None else _percent(row.params, host.params),
        "-" if row.macs is None else f"{row.macs / 1e9:.4f}",
        "" if host is None else _percent(row.macs, host.macs),
    )


def _difference(value: int | None, base: int | None) -> int | None:
    return None if value is None or base is None else value - base


def _percent(value: int | None, base: int | None) -> str:
    """Return the signed change from ``base`` in percent, or "" where it is undefined."""
    extra = _difference(value, base)
    return f"{100 * extra / base:+.2f}" if extra is not None and base else ""


def _title(row: Row) -> str:
    return f"{row.model} + {row.attention}" if row.attention else row.model
