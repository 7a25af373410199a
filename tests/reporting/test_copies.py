"""The least traffic: what is copied, and what a report says as multiples of it."""

import importlib
import statistics
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import attn_surgery
from attn_surgery.host import Input
from attn_surgery.reporting.measuring import Conditions, added_in_units, copies_of_maps, measure

CPU = torch.device("cpu")
DELAY_MS = 4.0
times_module = importlib.import_module("attn_surgery.reporting.times")


class Moved(TorchDispatchMode):
    """Sums up the bytes that copies read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.bytes += 2 * args[0].nbytes
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    def __init__(self, channels: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.bn1(self.conv1(x)).relu())


class Waiting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(DELAY_MS / 1e3)
        return x * 1


def waiting(channels: int) -> nn.Module:
    return Waiting()


def moved(train: bool = False, **conditions: Any) -> int:
    """Return the bytes moved for two blocks on maps of 8 x 6 x 6, three images."""
    copies = copies_of_maps(
        lambda: attn_surgery.apply(nn.Sequential(Block(), Block()), "se"),
        attn_surgery.inserted,
        Input(((8, 6, 6),)),
        Conditions(CPU, batch_size=3, **conditions),
        train=train,
    )
    with Moved() as seen:
        copies()
    return seen.bytes


MAPS = 2 * 3 * 8 * 6 * 6


@pytest.mark.parametrize(
    ("train", "conditions", "passes", "itemsize"),
    [
        (False, {}, 2, 4),
        (True, {}, 5, 4),
        (False, {"dtype": torch.float64}, 2, 8),
        (False, {"autocast": torch.bfloat16}, 2, 2),
        (False, {"channels_last": True}, 2, 4),
    ],
)
def test_each_map_goes_by_as_often_as_it_must(
    train: bool, conditions: dict[str, Any], passes: int, itemsize: int
) -> None:
    assert moved(train, **conditions) == passes * itemsize * MAPS


def test_what_is_timed_beside_takes_part_in_every_round() -> None:
    calls = []
    conditions = Conditions(CPU, seconds=0)
    run = measure(
        [Block], Input(((8, 6, 6),)), conditions, beside=[lambda: lambda: calls.append(1)]
    )
    (beside,) = run.beside
    assert len(run.timings) == 1
    assert not isinstance(beside, str)
    assert len(beside["wall"].samples_ms) == 10
    assert len(calls) > 10


@pytest.mark.slow
def test_a_known_delay_is_as_many_copies_as_fit_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times_module, "copies_of_maps", lambda *_, **__: lambda: time.sleep(0.002))
    report = attn_surgery.report(
        nn.Sequential(Block(), Block()),
        waiting,
        input_size=(8, 6, 6),
        train=True,
        seconds=0,
        init="paper",
        threads=1,
    )
    host, row = report.rows
    assert host.latency_added_copies is None
    # twice 4 ms, in units of 2 ms and of what a sleep takes beyond that
    assert row.latency_added_copies == pytest.approx(4, rel=0.25)
    assert row.train_latency_added_copies == pytest.approx(4, rel=0.25)
    assert "added (copies)" in report.text(width=None)
    explained = "to read and to write once"
    assert explained in report.text(width=None)
    assert explained in report.text(["copies"])
    assert explained not in report.text(["ratio"]), "where there is no such column"
    assert explained not in report.text(width=60)


def test_the_column_is_the_median_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(
        times_module, "measure", lambda *a, **k: runs.append(measure(*a, **k)) or runs[-1]
    )
    report = attn_surgery.report(Block(), ["se", "cbam"], input_size=(8, 6, 6), seconds=0)
    (run,) = runs
    host, _, cbam = (each["wall"].samples_ms for each in run.timings)
    assert len(run.beside) == 1, "both stand at one place: they take the same maps"
    copies = run.beside[0]["wall"].samples_ms
    expected = [(a - b) / c for a, b, c in zip(cbam, host, copies, strict=True)]
    assert report.rows[2].latency_added_copies == statistics.median(expected)
    timing = run.timings[2]["wall"]
    assert added_in_units(timing, run.timings[0]["wall"], run.beside[0]["wall"]) == (
        statistics.median(expected)
    )


def test_without_copies_the_times_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(times_module, "copies_of_maps", fails)
    report = attn_surgery.report(Block(), "se", input_size=(8, 6, 6), seconds=0)
    row = report.rows[1]
    assert row.error is None
    assert row.latency_added_ms is not None
    assert row.latency_added_copies is None
    (note,) = (each for each in report.notes if "copy of its maps" in each)
    assert note.startswith("Block + se: a copy of its maps is not measured")
    assert "no room" in note
