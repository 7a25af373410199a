"""The measurement: known delays, identical copies, what is restored, and what goes wrong."""

import copy
import gc
import importlib
import statistics
import time
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.host.inputs import Input
from attn_surgery.reporting.measuring.conditions import (
    Conditions,
    checked_device,
    checked_dtype,
    device_name,
)
from attn_surgery.reporting.measuring.latency import Measurement, _order, measure
from attn_surgery.reporting.measuring.statistics import Timing, median_interval, summarise

latency_module = importlib.import_module("attn_surgery.reporting.measuring.latency")
times_module = importlib.import_module("attn_surgery.reporting.times")
runner_module = importlib.import_module("attn_surgery.reporting.measuring.runner")

CPU = torch.device("cpu")
GIVEN = Input(((16, 24, 24),))
DELAY_MS = 40.0


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class Waiting(nn.Module):
    """An attention that takes a known time and does nothing."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        time.sleep(DELAY_MS / 1e3)
        return x * self.factor


def waiting(channels):
    return Waiting()


def timings(run: Measurement, clock: str = "wall") -> list[Timing]:
    assert not any(isinstance(each, str) for each in run.timings), run.timings
    return [each[clock] for each in run.timings if not isinstance(each, str)]


def within_three_tries(check):
    """The machine is shared: what other processes do can spoil one run."""
    for attempt in range(3):
        try:
            return check()
        except AssertionError:
            if attempt == 2:
                raise
    return None


@pytest.mark.parametrize("train", [False, True])
def test_a_known_delay_is_measured(train):
    def check():
        rows = attn_surgery.report(
            nn.Sequential(Block(), Block()),
            waiting,
            input_size=GIVEN.shapes[0],
            batch_size=2,
            train=train,
            latency=not train,
            threads=1,
            seconds=1,
            init="paper",
        ).rows
        host, slow = rows
        added = slow.train_latency_added_ms if train else slow.latency_added_ms
        assert slow.error is None
        assert added == pytest.approx(2 * DELAY_MS, rel=0.1)
        assert not slow.within_noise(train=train)
        ratio = slow.train_latency_ratio if train else slow.latency_ratio
        before = host.train_latency_ms if train else host.latency_ms
        assert ratio is not None
        assert before is not None
        assert added is not None
        assert ratio * before == pytest.approx(before + added, rel=0.1)

    within_three_tries(check)


def test_an_identical_copy_is_no_difference():
    host = Block()
    builders = [lambda: copy.deepcopy(host)] * 2

    def check():
        run = measure(builders, GIVEN, Conditions(CPU, seconds=0.5, threads=1))
        _, copied = timings(run)
        assert copied.ratio_low <= 1 <= copied.ratio_high

    within_three_tries(check)


def test_what_the_rows_say_follows_from_the_samples():
    host = Block()
    result = attn_surgery.report(host, "se", input_size=(16, 8, 8), seconds=0, batch_size=4)
    base, se = result.samples
    assert len(base.ms) == len(se.ms) == 10
    row = result.rows[1]
    assert row.latency_ms is not None
    assert row.latency_ratio is not None
    assert row.latency_ms == statistics.median(se.ms)
    pairs = list(zip(se.ms, base.ms, strict=True))
    assert row.latency_ratio == statistics.median(one / other for one, other in pairs)
    assert row.latency_added_ms == pytest.approx(statistics.median(a - b for a, b in pairs))
    assert row.throughput == pytest.approx(4 / (row.latency_ms / 1e3))
    assert (row.latency_q1_ms or 0) <= row.latency_ms <= (row.latency_q3_ms or 0)
    assert (row.latency_ratio_low or 0) <= row.latency_ratio <= (row.latency_ratio_high or 0)
    assert row.peak_bytes is None
    told = result.provenance
    assert told["device"]
    assert (told["torch"], told["batch_size"]) == (torch.__version__, 4)


# Statistics


@pytest.mark.parametrize("n", [6, 10, 11, 50, 301])
def test_interval_covers_the_median_as_often_as_it_says(n):
    generator = torch.Generator().manual_seed(n)
    drawn = torch.rand(1000, n, generator=generator).log()  # the median of log U is log 1/2
    hits = sum(low <= -0.6931 <= high for low, high in map(median_interval, drawn.tolist()))
    assert 0.94 <= hits / 1000 <= 0.998


def test_interval_narrows():
    low, high = median_interval(range(1000))
    assert (low, high) == (468, 531)


def test_summary_is_paired():
    # both slow down fivefold in the second half: the ratio does not notice
    host = [1.0] * 10 + [5.0] * 10
    timing = summarise([2 * ms for ms in host], host)
    assert (timing.ratio, timing.ratio_low, timing.ratio_high) == (2, 2, 2)


def test_order_changes_places_and_neighbours():
    orders = [_order([0, 1, 2], round_) for round_ in range(6)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    for place in range(3):
        assert sorted(order[place] for order in orders) == [0, 0, 1, 1, 2, 2]
    assert len({tuple(order) for order in orders}) == 6


def test_all_repeat_alike(monkeypatch):
    """Else the slow first call after another model's would weigh more for the slower of two."""
    calls = []
    monkeypatch.setattr(runner_module, "WARM_UP_CALLS", 1)

    class Noted(nn.Module):
        def __init__(self, name, milliseconds):
            super().__init__()
            self.name, self.milliseconds = name, milliseconds

        def forward(self, x):
            calls.append(self.name)
            time.sleep(self.milliseconds / 1e3)

    slow, fast = (lambda: Noted("slow", 6)), (lambda: Noted("fast", 1))
    measure([slow, fast], GIVEN, Conditions(CPU, seconds=0, threads=1))
    assert calls.count("slow") == calls.count("fast") > 2 * 10


# Conditions


def test_everything_is_restored():
    assert gc.isenabled()  # the tests before this one have measured, too
    before = torch.get_num_threads(), torch.is_grad_enabled(), gc.isenabled()
    seen = {}

    class Spy(Block):
        def forward(self, x):
            seen.update(threads=torch.get_num_threads(), grad=torch.is_grad_enabled())
            seen.update(collecting=gc.isenabled(), training=self.training, layout=x.stride())
            seen.update(dtype=x.dtype, autocast=torch.is_autocast_enabled("cpu"), batch=len(x))
            return super().forward(x)

    conditions = Conditions(
        CPU,
        batch_size=3,
        dtype=torch.float64,
        autocast=torch.bfloat16,
        channels_last=True,
        threads=2,
        seconds=0,
    )
    measure([Spy], GIVEN, conditions)
    assert seen["threads"] == 2
    assert (seen["grad"], seen["collecting"], seen["training"]) == (False, False, False)
    assert seen["layout"] == (24 * 24 * 16, 1, 24 * 16, 16)
    assert (seen["dtype"], seen["autocast"], seen["batch"]) == (torch.float64, True, 3)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), gc.isenabled()) == before
    assert not torch.is_autocast_enabled("cpu")


def test_a_training_step_trains():
    seen = []

    class Spy(Block):
        def forward(self, x):
            # set to none after each step, filled by backward
            seen.append((self.training, torch.is_grad_enabled(), self.conv1.weight.grad is None))
            return {"out": super().forward(x), "loss": self.conv1.weight.sum(), "ids": x.long()}

    (timing,) = timings(measure([Spy], GIVEN, Conditions(CPU, seconds=0), train=True))
    assert timing.median_ms > 0
    assert set(seen) == {(True, True, True)}


def test_channels_last_3d():
    value = torch.zeros(1, 2, 3, 4, 5)
    assert Conditions(CPU, channels_last=True).laid_out(value).stride()[1] == 1
    assert Conditions(CPU).laid_out(value).stride()[1] == 60


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch 2.11's own use, by its first compiling
def test_compiled():
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    run = measure([nn.ReLU], GIVEN, Conditions(CPU, compile=True, seconds=0))
    assert timings(run)[0].median_ms > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"threads": 0}, "threads=0"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"seconds": -1}, "seconds=-1"),
        ({"compile": "host"}, "compile='host'"),
        ({"graph": True}, "graph: captured on CUDA devices alone"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"autocast": "half16"}, "autocast='half16'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"device": "meta"}, "device 'meta' is not there"),
    ],
)
def test_conditions_that_cannot_be(options, message):
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.report(Block(), "se", input_size=(16, 8, 8), **options)


def test_words_are_read():
    assert checked_dtype(None, "dtype") is None
    assert checked_dtype(torch.half, "dtype") is torch.float16
    assert checked_device(CPU) == CPU


# What goes wrong


def test_out_of_memory():
    host = attn_surgery.report(Block(), (), input_size=(16, 8, 8), batch_size=10**12).rows[0]
    assert host.macs
    assert host.error == (
        "not measured: out of memory at batch 1000000000000 of 16x8x8 on cpu; try a smaller batch"
    )


def test_a_variant_that_fails_leaves_the_others():
    class Broken(Block):
        def forward(self, x):
            raise RuntimeError("no\nluck")

    host, broken, copied = measure(
        [Block, Broken, Block], GIVEN, Conditions(CPU, seconds=0)
    ).timings
    assert not isinstance(host, str)
    assert not isinstance(copied, str)
    assert isinstance(broken, str)
    assert broken.endswith("it failed for batch 1 of 16x24x24 on cpu: RuntimeError: no luck")


def test_without_a_host_nothing_is_compared():
    class Broken(Block):
        def forward(self, x):
            raise RuntimeError("no luck")

    first, second = measure([Broken, Block], GIVEN, Conditions(CPU, seconds=0)).timings
    assert "no luck" in str(first)
    assert second == "not measured: the host failed"


@pytest.fixture
def few_calls(monkeypatch):
    """Four calls before the first round, and one in each."""
    monkeypatch.setattr(runner_module, "SHORTEST_MS", 0)


WITHIN = 8


class FailsLater(Block):
    """Runs out of memory at one of its calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, x):
        self.calls -= 1
        if not self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_a_variant_that_fails_within_the_rounds_leaves_the_others(few_calls):
    builders = [Block, lambda: FailsLater(WITHIN), Block]
    host, failed, copied = measure(builders, GIVEN, Conditions(CPU, seconds=0)).timings
    assert str(failed).startswith("not measured: out of memory at batch 1 of 16x24x24")
    assert not isinstance(host, str)
    assert not isinstance(copied, str)
    assert len(host["wall"].samples_ms) == len(copied["wall"].samples_ms) >= 10


def test_a_host_that_fails_within_the_rounds_ends_them(few_calls):
    builders = [lambda: FailsLater(WITHIN), Block]
    host, variant = measure(builders, GIVEN, Conditions(CPU, seconds=0)).timings
    assert str(host).startswith("not measured: out of memory")
    assert variant == "not measured: the host failed"


@pytest.mark.parametrize("calls", [1, WITHIN])
def test_what_failed_holds_no_memory(few_calls, calls):
    """The next would fail, too; the collector of cycles is off, and an error makes some."""
    made, alive = [], []

    class Cyclic(FailsLater):
        def forward(self, x):
            try:
                return super().forward(x)
            except torch.OutOfMemoryError as error:
                vars(self)["error"] = error
                raise

    def failing():
        model = Cyclic(calls)
        made.append(weakref.ref(model))
        return model

    class Watching(Block):
        def forward(self, x):
            alive.append(made[0]() is not None)
            return super().forward(x)

    gc.collect()
    measure([Block, failing, Watching], GIVEN, Conditions(CPU, seconds=0))
    assert alive[-1] is False
    assert calls > 1 or not any(alive)


@pytest.mark.parametrize("options", [{"autocast": torch.float16}, {"dtype": torch.float16}])
def test_a_training_step_in_half_precision_leaves_the_weights_finite(options):
    class Steep(Block):
        def forward(self, x):
            return 6e4 * super().forward(x).float()

    net = Steep()
    run = measure([lambda: net], GIVEN, Conditions(CPU, seconds=0, **options), train=True)
    assert not isinstance(run.timings[0], str)
    assert all(bool(each.isfinite().all()) for each in net.state_dict().values())


def test_nothing_to_train():
    (why,) = measure([nn.ReLU], GIVEN, Conditions(CPU, seconds=0), train=True).timings
    assert "optimizer got an empty parameter list" in str(why)


def interrupted_after(monkeypatch, rounds):
    """Ctrl-C in the middle of a round."""
    original = latency_module._order

    def order(models, round_):
        if round_ == rounds:
            raise KeyboardInterrupt
        return original(models, round_)

    monkeypatch.setattr(latency_module, "_order", order)


def test_interrupt_keeps_what_was_measured(monkeypatch):
    interrupted_after(monkeypatch, 4)
    result = attn_surgery.report(Block(), "se", input_size=(16, 8, 8), train=True)
    assert result.interrupted
    assert [len(each.ms) for each in result.samples] == [4, 4]
    assert None not in {row.latency_ms for row in result.rows}
    assert {row.train_latency_ms for row in result.rows} == {None}
    assert "interrupted: measured so far" in str(result)


def test_interrupt_before_the_first_round(monkeypatch):
    interrupted_after(monkeypatch, 0)
    rows = attn_surgery.report(Block(), "se", input_size=(16, 8, 8)).rows
    assert [row.error for row in rows] == ["not measured: interrupted"] * 2
    assert None not in {row.macs for row in rows}


def test_interrupt_while_sites_are_measured(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(times_module, "measure_parts", interrupted)
    result = attn_surgery.report(Block(), "se", input_size=(16, 8, 8), seconds=0, per_site=True)
    assert result.interrupted
    assert None not in {row.latency_ms for row in result.rows}
    assert [(each.block, each.warm_ms) for each in result.per_site] == [("", None)]


def test_attentions_of_one_name_keep_their_sites():
    result = attn_surgery.report(
        Block(), ["se", "se"], input_size=(16, 8, 8), seconds=0, per_site=True
    )
    assert len(result.per_site) == 2
    assert all(each.warm_ms and each.cold_ms for each in result.per_site)


def test_progress_is_shown_when_asked_for(capsys):
    measure([Block], GIVEN, Conditions(CPU, seconds=0), title="net")
    assert capsys.readouterr().err == ""
    measure([Block], GIVEN, Conditions(CPU, seconds=0.01), title="net", progress=True)
    assert "net:" in capsys.readouterr().err


# Accelerators


COUNTERS = ["memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"]


def pretended_accelerator(monkeypatch: pytest.MonkeyPatch, **counters: Any) -> Conditions:
    """Let the meta device, which computes at once, be one with the given counters."""
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    for name in COUNTERS:
        monkeypatch.setattr(torch.accelerator, name, counters.get(name, lambda device: None))
    return Conditions(torch.device("meta"), seconds=0)


def no_counter(device: torch.device) -> int:
    raise RuntimeError("Allocator for mps is not a DeviceAllocator")


@pytest.mark.parametrize("missing", COUNTERS)
def test_times_stand_where_memory_is_not_counted(monkeypatch, missing):
    """As on Apple's MPS with older versions of torch."""
    known = {"memory_allocated": lambda device: 5, "max_memory_allocated": lambda device: 12}
    build = lambda: Block().to("meta")  # noqa: E731
    complete = pretended_accelerator(monkeypatch, **known)
    assert [each.peak_bytes for each in timings(measure([build], GIVEN, complete))] == [7]
    lacking = pretended_accelerator(monkeypatch, **{**known, missing: no_counter})
    (timing,) = timings(measure([build], GIVEN, lacking))
    assert timing.peak_bytes is None
    assert timing.median_ms > 0


def test_a_counter_that_stands_still_counts_nothing(monkeypatch):
    conditions = pretended_accelerator(monkeypatch)
    (timing,) = timings(measure([lambda: Block().to("meta")], GIVEN, conditions))
    assert timing.peak_bytes is None


def test_libraries_take_their_memory_before_any_model_does(monkeypatch):
    """It comes from the same allocator, and would be the host's alone."""
    seen = []
    original = latency_module.warm_libraries
    warm = lambda conditions: (original(conditions), seen.append("libraries"))  # noqa: E731
    monkeypatch.setattr(latency_module, "warm_libraries", warm)
    held = lambda device: seen.append("held")  # noqa: E731
    measure(
        [lambda: Block().to("meta")],
        GIVEN,
        pretended_accelerator(monkeypatch, memory_allocated=held),
    )
    assert seen == ["libraries", "held"]


def test_a_device_without_properties_goes_by_its_type(monkeypatch):
    monkeypatch.delattr(torch.mps, "get_device_properties", raising=False)
    assert device_name(torch.device("mps")) == "mps"
