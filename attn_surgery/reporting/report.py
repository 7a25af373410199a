"""What an attention costs in a host, before any surgery is done: counted and measured.

Everything happens on copies; the host is not touched. What the counts mean is said in
`attn_surgery.reporting.counting`, how times are measured in `attn_surgery.reporting.measuring`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import (
    Input,
    InputSize,
    as_input,
    device_copy,
    meta_copy,
    undisturbed_randomness,
)
from attn_surgery.planning import Attention, Chosen, One, Plan
from attn_surgery.reporting.costs import Counted, count, site_costs
from attn_surgery.reporting.measuring import (
    Conditions,
    Timing,
    checked_device,
    checked_dtype,
    measure,
)
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row, Samples
from attn_surgery.surgery import apply, plan


def report(
    model: nn.Module,
    attention: Attention | Sequence[Attention] = ("se", "cbam"),
    *,
    input_size: InputSize | Input | None = None,
    name: str | None = None,
    where: Any = None,
    position: str = "standard",
    existing: str = "skip",
    init: str = "identity",
    per_site: bool = False,
    latency: bool = True,
    train: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    dtype: torch.dtype | str | None = None,
    autocast: torch.dtype | str | None = None,
    channels_last: bool = False,
    compile: bool = False,
    threads: int | None = None,
    seconds: float = 5.0,
    progress: bool | None = False,
    **options: Any,
) -> Report:
    """Tell what each attention would cost in ``model``.

    Args:
        model: The host; left as it is, in whatever mode and on whatever device. On the meta device
            it is counted, but cannot be measured.
        attention: One attention or several, each as `attn_surgery.apply` takes it.
        input_size: Shape of one input, ``(C, *spatial)``; a list of shapes for a model that takes
            several tensors; or a callable that makes the input, batch included: a tensor, a tuple
            of arguments or a dict of keywords. By default what a timm model says, else a guess
            from the first convolution.
        name: What to call the host in the table; by default the name of its class.
        where: As for `attn_surgery.apply`; so are ``position``, ``existing`` and ``init``.
        position: As for `attn_surgery.apply`.
        existing: As for `attn_surgery.apply`.
        init: As for `attn_surgery.apply`.
        per_site: Break the counts down by block.
        latency: Measure the forward pass.
        train: Measure a training step, too.
        device: Where to measure; by default where the host's parameters are.
        batch_size: Inputs in one measured call. The counts are those of one input.
        dtype: Convert model and input, for counting and measuring.
        autocast: Measure within ``torch.autocast`` of this dtype.
        channels_last: Measure in the channels-last memory format.
        compile: Measure through ``torch.compile``; what was compiled before is compiled anew.
        threads: CPU threads while measuring.
        seconds: Time for measuring the forward pass of all, and again for the training step.
        progress: Show a progress bar on stderr; None is "if it is a terminal".
        **options: For every attention.

    Returns:
        The host's row, then one row for each attention. A row that could not be completed says so
        in `Row.error`. Ctrl-C while measuring ends it early, with what was measured so far.

    Raises:
        SurgeryError: An argument cannot be used, or a plan cannot be made as asked.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> costs = attn_surgery.report(host, "se", latency=False).rows
        >>> costs[1].params - costs[0].params, costs[1].macs - costs[0].macs
        (89080, 87040)
    """
    name = name or type(model).__name__
    given = as_input(input_size, model)
    dtype, autocast = checked_dtype(dtype, "dtype"), checked_dtype(autocast, "autocast")
    # A host that is only counted may be anywhere.
    place = _place(model, device) if latency or train else torch.device("meta")
    conditions = Conditions(
        place, batch_size, dtype, autocast, channels_last, compile, threads, seconds
    )
    asked = {"where": where, "position": position, "existing": existing, **options}
    with undisturbed_randomness(place):
        host = _copied(model, name, dtype)
        variants = [_planned(host, one, asked, init) for one in _as_list(attention)]
        counted = _counted(Row(name, None, 0, None, None), host, variants, given, per_site)
        result = _report(name, given, variants, counted, per_site)
        if place.type != "meta":
            kinds = [kind for kind, wanted in ((False, latency), (True, train)) if wanted]
            result = _measured(result, model, variants, given, conditions, kinds, progress)
    return result


@dataclass(frozen=True)
class _Variant:
    """One attention in the host, planned."""

    attention: Attention
    plan: Plan
    asked: Mapping[str, Any]

    @property
    def label(self) -> str:
        return _label(self.attention)

    def apply(self, copied: nn.Module) -> nn.Module:
        return apply(copied, self.attention, **self.asked)


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    own = next((each.device for each in (*model.parameters(), *model.buffers())), None)
    if own is not None and own.type == "meta":
        return own
    return checked_device(device or own or "cpu")


def _copied(model: nn.Module, name: str, dtype: torch.dtype | None) -> nn.Module:
    try:
        return meta_copy(model).to(dtype)
    except Exception as error:
        raise SurgeryError(f"{name} cannot be copied to be counted: {one_line(error)}") from error


def _planned(
    host: nn.Module, attention: Attention, asked: Mapping[str, Any], init: str
) -> _Variant:
    return _Variant(attention, plan(host, attention, **asked), {**asked, "init": init})


# Counting


def _counted(
    row: Row, host: nn.Module, variants: Sequence[_Variant], given: Input, per_site: bool
) -> list[Counted]:
    """Count the host and every variant, all with the same blocks told apart."""
    sites = [site for variant in variants for site in variant.plan.sites]
    blocks = dict.fromkeys(site.block for site in sites) if per_site else {}
    # The host's copy is wrapped while it is counted: the variants are copied from it before.
    rows = [replace(row, attention=each.label, sites=len(each.plan.sites)) for each in variants]
    copies = [_operated(host, each) for each in variants]
    refused = [each for each in copies if isinstance(each, SurgeryError)]
    if refused and not any(isinstance(each, nn.Module) for each in copies):
        raise refused[0]
    base = count(row, host, given, blocks)
    counted = [
        _one_counted(each, one, base, given, blocks) for each, one in zip(rows, copies, strict=True)
    ]
    return [base, *counted]


def _operated(host: nn.Module, variant: _Variant) -> nn.Module | Exception | None:
    """Return a copy with the attention in it, None where it goes nowhere, or why it failed."""
    if not variant.plan.sites:
        return None
    try:
        return variant.apply(meta_copy(host))
    except Exception as error:
        return error


def _one_counted(
    row: Row,
    copied: nn.Module | Exception | None,
    base: Counted,
    given: Input,
    blocks: Collection[str],
) -> Counted:
    if isinstance(copied, Exception):
        said = str(copied) if isinstance(copied, SurgeryError) else one_line(copied)
        return Counted(replace(row, error=said), {}, None, ())
    if copied is not None:
        return count(row, copied, given, blocks)
    same = replace(base.row, attention=row.attention, sites=0, error=None)
    return replace(base, row=same, notes=())


def _report(
    name: str,
    given: Input,
    variants: Sequence[_Variant],
    counted: Sequence[Counted],
    per_site: bool,
) -> Report:
    base, *others = counted
    pairs = list(zip(variants, others, strict=True))
    rows = [base.row, *(_explained(variant, one.row) for variant, one in pairs)]
    costs = [cost for variant, one in pairs for cost in site_costs(base, one, variant.plan.sites)]
    notes = dict.fromkeys(note for one in counted for note in one.notes)
    return Report(
        tuple(rows),
        {name: given.to_json()},
        tuple(costs) if per_site else (),
        notes=tuple(notes),
    )


def _explained(variant: _Variant, row: Row) -> Row:
    planned = variant.plan
    if planned.sites:
        return row
    if not planned.skipped:
        return replace(row, error="nothing inserted: no residual block found")
    first = planned.skipped[0]
    return replace(
        row,
        error=f"nothing inserted: all {len(planned.skipped)} sites are skipped "
        f"(first: {first.block or '(root)'}: {first.reason})",
    )


# Measuring


def _measured(
    result: Report,
    model: nn.Module,
    variants: Sequence[_Variant],
    given: Input,
    conditions: Conditions,
    kinds: Sequence[bool],
    progress: bool | None,
) -> Report:
    """Fill in what is measured: forward passes, training steps (True), or both."""
    copied = partial(device_copy, model, conditions.device)
    # A variant that could not be made, or that is the host, has nothing to be measured.
    places = [0, *(i for i, each in enumerate(variants, 1) if _is_new(result.rows[i], each))]
    builders = [copied, *(partial(_built, copied, variants[i - 1]) for i in places[1:])]
    rows, samples, interrupted = list(result.rows), [], False
    for train in kinds:
        title = f"{rows[0].model}: {'training step' if train else 'forward'}"
        run = measure(builders, given, conditions, train=train, progress=progress, title=title)
        for i, timing in zip(places, run.timings, strict=True):
            rows[i] = _timed(rows[i], timing, train, conditions.batch_size)
            if isinstance(timing, Timing):
                row = rows[i]
                samples.append(Samples(row.model, row.attention, train, timing.samples_ms))
        interrupted = run.interrupted
        if interrupted:
            break
    return replace(
        result,
        rows=tuple(rows),
        samples=tuple(samples),
        provenance=conditions.provenance(),
        interrupted=interrupted,
    )


def _is_new(row: Row, variant: _Variant) -> bool:
    return bool(variant.plan.sites) and row.params is not None


def _built(copied: Callable[[], nn.Module], variant: _Variant) -> nn.Module:
    return variant.apply(copied())


def _timed(row: Row, timing: Timing | str, train: bool, batch_size: int) -> Row:
    if isinstance(timing, str):
        return replace(row, error="; ".join(filter(None, [row.error, timing])))
    values = {
        "latency_ms": timing.median_ms,
        "latency_q1_ms": timing.q1_ms,
        "latency_q3_ms": timing.q3_ms,
        "latency_ratio": timing.ratio,
        "latency_ratio_low": timing.ratio_low,
        "latency_ratio_high": timing.ratio_high,
        "latency_added_ms": timing.added_ms,
        "throughput": 1e3 * batch_size / timing.median_ms,
        "peak_bytes": timing.peak_bytes,
    }
    return replace(row, **{f"train_{key}" if train else key: v for key, v in values.items()})


# Attentions


def _as_list(attention: Attention | Sequence[Attention]) -> list[Attention]:
    if isinstance(attention, (str, Mapping, Plan)) or callable(attention):
        return [attention]
    return list(attention)


def _label(attention: Attention | One) -> str:
    if isinstance(attention, str):
        return attention
    if isinstance(attention, Mapping):
        return ", ".join(f"{pattern}: {_label(one)}" for pattern, one in attention.items())
    if isinstance(attention, Plan):
        return ", ".join(dict.fromkeys(map(str, attention.assignments)))
    if isinstance(attention, tuple):
        builder, options = attention
        return str(Chosen(builder, options).assignment)
    return getattr(attention, "__name__", type(attention).__name__)
