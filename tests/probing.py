"""What really arrives at every site of a plan: the shapes of one forward pass, without numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.host.copies import meta_copy
from attn_surgery.host.inputs import Input, floating_dtype, guess_input
from attn_surgery.planning.sites import Site
from attn_surgery.reporting.counting.data_dependent import EverythingPasses
from attn_surgery.surgery.origin import origin_of


class Probe(nn.Module):
    """An attention that does nothing but note the shapes that it gets."""

    def __init__(self, channels: int, *, spatial_dims: int, init: str):
        super().__init__()
        self.planned = (channels, spatial_dims)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x


@dataclass(frozen=True)
class Probed:
    """What a forward pass showed of the sites of a plan.

    Attributes:
        sites: How many there are.
        unreached: Those that nothing arrived at.
        mismatched: Those that got other maps than the plan says, each with the shapes.
        failure: Why the pass could not be made to its end; "" where it was.
    """

    sites: int
    unreached: tuple[Site, ...] = ()
    mismatched: tuple[tuple[Site, tuple[tuple[int, ...], ...]], ...] = ()
    failure: str = ""


def probed(model: nn.Module, inputs: Iterable[Input] = ()) -> Probed:
    """Put a probe at every site of a copy on the meta device, and run forward.

    Args:
        model: The host.
        inputs: What to try in turn, until all sites are reached; by default, what a report would
            take. After them, training mode is tried.
    """
    model = meta_copy(model)
    try:
        attn_surgery.apply(model, Probe, existing="stack", init="paper")
    except SurgeryError:
        if attn_surgery.plan(model, Probe, existing="stack").sites:
            raise
        return Probed(0)
    probes = [each for each in attn_surgery.inserted(model).values() if isinstance(each, Probe)]
    failure = ""
    given = list(inputs) or [guess_input(model)]
    for each, training in (*((each, False) for each in given), (given[0], True)):
        why = _failure(model.train(training), each, batch=2 if training else 1)
        failure = failure or why
        if all(probe.seen for probe in probes):
            break
    return Probed(
        len(probes),
        tuple(_site(probe) for probe in probes if not probe.seen),
        tuple((_site(probe), tuple(probe.seen)) for probe in probes if not _agrees(probe)),
        failure,
    )


def _failure(model: nn.Module, given: Input, batch: int) -> str:
    """Run forward and return why it failed, or ""."""
    args, kwargs = given.build(batch, "meta", floating_dtype(model))
    try:
        with torch.no_grad(), EverythingPasses():
            model(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _agrees(probe: Probe) -> bool:
    return all((shape[1], len(shape) - 2) == probe.planned for shape in probe.seen)


def _site(probe: Probe) -> Site:
    origin = origin_of(probe)
    assert origin is not None
    return origin.site


def calls(host: nn.Module, x: Tensor) -> int:
    """Count how often a forward pass runs attention."""
    seen: list[object] = []
    attentions = attn_surgery.inserted(host).values()
    handles = [each.register_forward_hook(lambda *told: seen.append(told)) for each in attentions]
    host(x)
    for handle in handles:
        handle.remove()
    return len(seen)
