"""What an attention costs in a host, before any surgery is done: counted and measured.

Everything happens on copies; the host is not touched. What the counts mean is said in
`attn_surgery.reporting.counting`, how times are measured in `attn_surgery.reporting.measuring`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import (
    Input,
    InputSize,
    as_input,
    check_module,
    meta_copy,
    undisturbed_randomness,
)
from attn_surgery.planning import Attention
from attn_surgery.reporting.costs import Counted, count, site_costs
from attn_surgery.reporting.measuring import Conditions, checked_device, checked_dtype, waiting
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row
from attn_surgery.reporting.times import Measured
from attn_surgery.reporting.variants import Variant, as_list


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
    compile: bool | str = False,
    graph: bool = False,
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
        per_site: Break the counts down by block; with ``latency``, time the attentions of each
            block alone, too, with their inputs in the device's cache and without.
        latency: Measure the forward pass. On an accelerator two clocks do: the host's, and the
            device's own (`Row.times`).
        train: Measure a training step, too.
        device: Where to measure; by default where the host's parameters are.
        batch_size: Inputs in one measured call. The counts are those of one input.
        dtype: Convert model and input, for counting and measuring.
        autocast: Measure within ``torch.autocast`` of this dtype.
        channels_last: Measure in the channels-last memory format.
        compile: Measure through ``torch.compile``: the whole model (True), or "attention" for what
            is inserted alone; what was compiled before is compiled anew.
        graph: Measure the forward pass as a captured CUDA graph, too, as it may be deployed.
        threads: CPU threads while measuring.
        seconds: Time for measuring the forward pass of all, and again for the training step, and
            for the attentions of all sites.
        progress: Show on stderr how far it is; None is "if it is a terminal".
        **options: For every attention.

    Returns:
        The host's row, then one row for each attention. A row that could not be completed says so
        in `Row.error`. Ctrl-C while measuring ends it early, with what was measured so far.

    Raises:
        SurgeryError: An argument cannot be used (``graph`` elsewhere than on CUDA), or a plan
            cannot be made as asked.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> costs = attn_surgery.report(host, "se", latency=False).rows
        >>> costs[1].params - costs[0].params, costs[1].macs - costs[0].macs
        (89080, 87040)
    """
    check_module(model)
    name = name or type(model).__name__
    given = as_input(input_size, model)
    dtype, autocast = checked_dtype(dtype, "dtype"), checked_dtype(autocast, "autocast")
    # A host that is only counted may be anywhere.
    place = _place(model, device) if latency or train else torch.device("meta")
    conditions = Conditions(
        place, batch_size, dtype, autocast, channels_last, compile, graph, threads, seconds
    )
    asked = {"where": where, "position": position, "existing": existing, **options}
    with undisturbed_randomness(place):
        with waiting(f"{name}: counting", progress):
            host = _copied(model, name, dtype)
            variants = [Variant.planned(host, one, asked, init) for one in as_list(attention)]
            counted = _counted(Row(name, None, 0, None, None), host, variants, given, per_site)
            result = _report(name, given, variants, counted, per_site)
        if place.type != "meta":
            kinds = [kind for kind, wanted in ((False, latency), (True, train)) if wanted]
            measured = Measured(model, variants, given, conditions)
            result = measured.rows(result, kinds, progress)
            if per_site and latency and not result.interrupted:
                result = measured.sites(result)
    return result


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


# Counting


def _counted(
    row: Row, host: nn.Module, variants: Sequence[Variant], given: Input, per_site: bool
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


def _operated(host: nn.Module, variant: Variant) -> nn.Module | Exception | None:
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
    variants: Sequence[Variant],
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


def _explained(variant: Variant, row: Row) -> Row:
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
