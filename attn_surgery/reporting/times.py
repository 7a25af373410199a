"""The measured part of a report's rows, and of its breakdown by site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from attn_surgery.errors import one_line
from attn_surgery.host import Input, device_copy
from attn_surgery.reporting.costs import innermost
from attn_surgery.reporting.measuring import (
    Conditions,
    Measurement,
    PartTimes,
    Timing,
    Timings,
    added_in_units,
    copies_of_maps,
    measure,
    measure_parts,
)
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import WALL, Row, Samples, SiteCost, Times
from attn_surgery.reporting.variants import Variant
from attn_surgery.surgery import inserted


@dataclass(frozen=True)
class Measured:
    """A host and its variants, to be measured on copies.

    Attributes:
        model: The host.
        variants: The attentions.
        given: The input.
        conditions: Where and how.
    """

    model: nn.Module
    variants: Sequence[Variant]
    given: Input
    conditions: Conditions

    def rows(self, result: Report, kinds: Sequence[bool], progress: bool | None) -> Report:
        """Fill in the times of forward passes, of training steps (True), or of both.

        Args:
            result: Its rows are those of the host and of the variants.
            kinds: What is measured.
            progress: As for `report`.
        """
        # a variant that could not be made, or that is the host, has nothing to be measured
        new = dict(self._new(result))
        builders = [self._host, *(partial(self._built, each) for each in new.values())]
        # variants at the same places take the same maps
        traffic = {each.plan.sites: each for each in new.values()}
        units = {i: list(traffic).index(each.plan.sites) for i, each in new.items()}
        for train in kinds:
            title = f"{result.rows[0].model}: {'training step' if train else 'forward'}"
            run = measure(
                builders,
                self.given,
                self.conditions,
                beside=[partial(self._copies, each, train=train) for each in traffic.values()],
                train=train,
                progress=progress,
                title=title,
            )
            result = self._filled(result, units, run, train=train)
            if run.interrupted:
                break
        return result

    def sites(self, result: Report) -> Report:
        """Fill in how long the attentions of each block take alone."""
        times: dict[str, Mapping[str, PartTimes]] = {}
        notes: list[str] = []
        interrupted = False
        for number, variant in self._new(result):
            build = partial(self._built, variant)
            try:
                parts = measure_parts(build, inserted, self.given, self._share(result))
            except KeyboardInterrupt:
                interrupted = True
                break
            except Exception as error:
                title = result.rows[number].title
                notes.append(f"{title}: its sites are not measured: {one_line(error)}")
            else:
                times[variant.label] = parts
        return replace(
            result,
            per_site=tuple(_timed_sites(result.per_site, times)),
            notes=(*result.notes, *dict.fromkeys(notes)),
            interrupted=interrupted,
        )

    def _share(self, result: Report) -> Conditions:
        return replace(self.conditions, seconds=self.conditions.seconds / len(self._new(result)))

    def _new(self, result: Report) -> list[tuple[int, Variant]]:
        """Return the variants that can be measured, each with the number of its row."""
        return [
            (number, each)
            for number, each in enumerate(self.variants, 1)
            if each.plan.sites and result.rows[number].params is not None
        ]

    def _host(self) -> nn.Module:
        return device_copy(self.model, self.conditions.device)

    def _built(self, variant: Variant) -> nn.Module:
        return variant.apply(self._host())

    def _copies(self, variant: Variant, *, train: bool) -> Callable[[], object]:
        build = partial(self._built, variant)
        return copies_of_maps(build, inserted, self.given, self.conditions, train=train)

    def _filled(
        self, result: Report, units: Mapping[int, int], run: Measurement, *, train: bool
    ) -> Report:
        """Fill in what a run says.

        Args:
            result: What is known so far.
            units: The number of each variant's row, and of the copies of its maps beside the run.
            run: The host was timed first, then the variants.
            train: Whether it timed training steps.
        """
        rows, samples, notes = list(result.rows), list(result.samples), list(result.notes)
        for i, timings, said in zip((0, *units), run.timings, run.notes, strict=True):
            if isinstance(timings, str):
                error = "; ".join(filter(None, [rows[i].error, timings]))
                rows[i] = replace(rows[i], error=error)
                continue
            copies = run.beside[units[i]] if i else {}
            if isinstance(copies, str):
                notes.append(f"{rows[i].title}: a copy of its maps is {copies}")
            added = _added_copies(timings, run.timings[0], copies)
            row = _timed(rows[i], timings, added, self.conditions.batch_size, train=train)
            rows[i] = row
            samples += [
                Samples(row.model, row.attention, train, each.samples_ms, clock)
                for clock, each in timings.items()
            ]
            notes += [f"{row.title}: {each}" for each in said]
        notes += [f"{'training step' if train else 'forward pass'}: {each}" for each in run.doubts]
        return replace(
            result,
            rows=tuple(rows),
            samples=tuple(samples),
            provenance={**self.conditions.provenance(), **run.machine},
            notes=tuple(dict.fromkeys(notes)),
            interrupted=run.interrupted,
        )


def _added_copies(timings: Timings, host: Timings | str, copies: Timings | str) -> dict[str, float]:
    """Return what was added as multiples of copies of the maps, clock by clock."""
    if isinstance(host, str) or isinstance(copies, str):
        return {}
    clocks = timings.keys() & host.keys() & copies.keys()
    return {each: added_in_units(timings[each], host[each], copies[each]) for each in clocks}


def _timed(
    row: Row, timings: Timings, copies: Mapping[str, float], batch_size: int, *, train: bool
) -> Row:
    others = [
        _times(name, each, copies.get(name), batch_size, train=train)
        for name, each in timings.items()
    ]
    wall = others.pop([each.clock for each in others].index(WALL))
    values = {**wall.values(), "peak_bytes": timings[WALL].peak_bytes}
    named = {f"train_{name}" if train else name: value for name, value in values.items()}
    return replace(row, **named, times=(*row.times, *others))


def _times(
    clock: str, timing: Timing, copies: float | None, batch_size: int, *, train: bool
) -> Times:
    return Times(
        clock=clock,
        train=train,
        latency_ms=timing.median_ms,
        latency_q1_ms=timing.q1_ms,
        latency_q3_ms=timing.q3_ms,
        latency_p90_ms=timing.p90_ms,
        latency_p99_ms=timing.p99_ms,
        latency_ratio=timing.ratio,
        latency_ratio_low=timing.ratio_low,
        latency_ratio_high=timing.ratio_high,
        latency_added_ms=timing.added_ms,
        latency_added_copies=copies,
        throughput=1e3 * batch_size / timing.median_ms,
    )


def _timed_sites(
    costs: Sequence[SiteCost], times: Mapping[str, Mapping[str, PartTimes]]
) -> Iterator[SiteCost]:
    """Yield the costs of blocks, with the times of the attentions in each."""
    blocks: dict[str, set[str]] = defaultdict(set)
    for cost in costs:
        if cost.block is not None:
            blocks[cost.attention].add(cost.block)
    parts: dict[tuple[str, str | None], list[PartTimes]] = defaultdict(list)
    for attention, timed in times.items():
        for path, each in timed.items():
            parts[attention, innermost(path, blocks[attention])].append(each)
    for cost in costs:
        inside = parts[cost.attention, cost.block]
        yield replace(
            cost,
            warm_ms=sum(each.warm_ms for each in inside) if inside else None,
            cold_ms=sum(each.cold_ms for each in inside) if inside else None,
        )
