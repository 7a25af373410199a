"""What a report consists of: rows, their breakdown by site, raw times."""

from __future__ import annotations

from dataclasses import dataclass, fields

WALL = "wall"
"""The clock whose times `Row` holds itself."""


@dataclass(frozen=True)
class Times:
    """What one clock says of one row.

    Attributes:
        clock: "wall", the host's, the device waited for at both ends; "device", events on it, all
            calls queued before it begins; "graph", the same of a captured CUDA graph.
        train: Whether it is a training step, and not a forward pass.
        latency_ms: Median time for the batch.
        latency_q1_ms: First quartile.
        latency_q3_ms: Third quartile.
        latency_p90_ms: Nine of ten times are below it.
        latency_p99_ms: 99 of a hundred are.
        latency_ratio: Median of the paired ratios to the host's time.
        latency_ratio_low: Lower end of the ratio's 95 % interval.
        latency_ratio_high: Upper end.
        latency_added_ms: Median of the paired differences from the host's time.
        latency_added_copies: Median of the same differences as multiples of the least traffic: in
            a forward pass each map that an attention takes read and written once, in a training
            step also read again, with its gradient, and another gradient written (five passes
            over it, not two).
        throughput: Inputs per second: batch size / ``latency_ms``.
    """

    clock: str
    train: bool
    latency_ms: float | None = None
    latency_q1_ms: float | None = None
    latency_q3_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    latency_added_ms: float | None = None
    latency_added_copies: float | None = None
    throughput: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the clock cannot tell the row from its host."""
        low, high = self.latency_ratio_low, self.latency_ratio_high
        return low is not None and high is not None and low <= 1 <= high

    def values(self) -> dict[str, float | None]:
        """Return the numbers, by the names that `Row` has for them."""
        return {name: getattr(self, name) for name in MEASURED}


MEASURED = tuple(each.name for each in fields(Times))[2:]


@dataclass(frozen=True)
class Row:
    """The costs of one host, or of one host with one attention; None is "not measured".

    Counts are those of one input. They mean what `attn_surgery.reporting.counting` says.

    Attributes:
        model: Name of the host.
        attention: Name of the attention; None in the host's own row.
        sites: Number of places that get the attention.
        params: Number of parameters; a shared one counts once.
        macs: Multiply-adds of one forward pass in evaluation mode.
        elementwise_ops: Elementwise and reduction operations of that pass.
        bytes_moved: Bytes that those operations read and write.
        saved_bytes: Bytes of activations kept for the backward pass.
        latency_ms: Median time of one forward pass of the batch.
        latency_ratio: Median of the paired ratios to the host's time.
        error: Why something in this row is missing; None if nothing went wrong.
        latency_q1_ms: First quartile of the times.
        latency_q3_ms: Third quartile of the times.
        latency_p90_ms: Nine of ten times are below it.
        latency_p99_ms: 99 of a hundred are.
        latency_ratio_low: Lower end of the ratio's 95 % interval.
        latency_ratio_high: Upper end of the ratio's 95 % interval.
        latency_added_ms: Median of the paired differences from the host's time.
        latency_added_copies: The same as multiples of the least traffic, as `Times` says it.
        throughput: Inputs per second: batch size / ``latency_ms``.
        peak_bytes: Most device memory of a forward pass, weights included.
        train_latency_ms: Median time of one training step of the batch.
        train_latency_ratio: As ``latency_ratio``, for training steps; so are the next eight.
        train_latency_q1_ms: First quartile.
        train_latency_q3_ms: Third quartile.
        train_latency_p90_ms: Nine of ten.
        train_latency_p99_ms: 99 of a hundred.
        train_latency_ratio_low: Lower end of the interval.
        train_latency_ratio_high: Upper end of the interval.
        train_latency_added_ms: Median of the paired differences.
        train_latency_added_copies: The same as multiples of the least traffic.
        train_throughput: Inputs per second in training.
        train_peak_bytes: Most device memory of a training step.
        times: What other clocks than the host's say, where there are any.
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
    latency_q1_ms: float | None = None
    latency_q3_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    latency_added_ms: float | None = None
    latency_added_copies: float | None = None
    throughput: float | None = None
    peak_bytes: int | None = None
    train_latency_ms: float | None = None
    train_latency_ratio: float | None = None
    train_latency_q1_ms: float | None = None
    train_latency_q3_ms: float | None = None
    train_latency_p90_ms: float | None = None
    train_latency_p99_ms: float | None = None
    train_latency_ratio_low: float | None = None
    train_latency_ratio_high: float | None = None
    train_latency_added_ms: float | None = None
    train_latency_added_copies: float | None = None
    train_throughput: float | None = None
    train_peak_bytes: int | None = None
    times: tuple[Times, ...] = ()

    @property
    def title(self) -> str:
        """The host's name, and the attention's."""
        return f"{self.model} + {self.attention}" if self.attention else self.model

    @property
    def measured(self) -> list[Times]:
        """What each clock says, of forward passes and of training steps."""
        own = (self.by(WALL), self.by(WALL, train=True))
        return [*(each for each in own if each is not None), *self.times]

    def within_noise(self, *, train: bool = False) -> bool:
        """Whether the measurement cannot tell this row from its host.

        Example:
            >>> known = {"latency_ms": 5.0, "latency_ratio_low": 0.99, "latency_ratio_high": 1.02}
            >>> Row("net", "se", 1, 1, 1, **known).within_noise()
            True
        """
        times = self.by(WALL, train=train)
        return times is not None and times.within_noise

    def by(self, clock: str, *, train: bool = False) -> Times | None:
        """Return what a clock says; None where it was not asked."""
        if clock != WALL:
            asked = (clock, train)
            return next((each for each in self.times if (each.clock, each.train) == asked), None)
        values = {name: getattr(self, f"train_{name}" if train else name) for name in MEASURED}
        return None if values["latency_ms"] is None else Times(clock, train, **values)


@dataclass(frozen=True)
class SiteCost:
    """What one attention adds in one block: the variant's block minus the host's.

    Attributes:
        model: Name of the host.
        attention: Name of the attention.
        block: Path of the block; "" is the host itself, None is everything outside of the blocks.
        after: What the attention receives; several where the block has several sites.
        params: Parameters added.
        macs: Multiply-adds added.
        elementwise_ops: Elementwise and reduction operations added.
        bytes_moved: Bytes moved added.
        warm_ms: Time of the block's attentions alone, their inputs in the device's cache.
        cold_ms: The same, something else in the cache.
    """

    model: str
    attention: str
    block: str | None
    after: tuple[str, ...]
    params: int
    macs: int
    elementwise_ops: int
    bytes_moved: int
    warm_ms: float | None = None
    cold_ms: float | None = None


@dataclass(frozen=True)
class Samples:
    """The raw times of one row; the n-th of host and variants are of the same round."""

    model: str
    attention: str | None
    train: bool
    ms: tuple[float, ...]
    clock: str = WALL
