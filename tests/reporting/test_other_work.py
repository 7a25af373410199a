"""A machine that does something else meanwhile is told, and one that does not is not."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import types
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import attn_surgery
from attn_surgery.reporting import command
from attn_surgery.reporting.measuring.device_state import DeviceState, device_state
from attn_surgery.reporting.measuring.other_work import Watched, watched

module = importlib.import_module("attn_surgery.reporting.measuring.other_work")
CPU = torch.device("cpu")
CORE: Any = psutil.cpu_times()


class Machine:
    """Cores whose time goes to this process and to others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int = 2):
        self.wall = self.own = self.others = 0.0
        self.cores = cores
        processor = types.SimpleNamespace(
            Process=lambda: types.SimpleNamespace(
                cpu_times=lambda: types.SimpleNamespace(user=self.own, system=0.0),
                cpu_affinity=lambda: list(range(cores)),
            ),
            cpu_times=self._cpu_times,
            getloadavg=lambda: (1.5, 1.0, 1.0),
            Error=OSError,
        )
        monkeypatch.setattr(module, "psutil", processor)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.wall)

    def _cpu_times(self, *, percpu: bool) -> list[Any]:
        busy = (self.own + self.others) / self.cores
        rest = dict.fromkeys(CORE._fields, 0.0)
        return [CORE._replace(**{**rest, "user": busy, "idle": 7.0})] * self.cores

    def run(self, seconds: float, own: float, others: float) -> None:
        """Let time pass, so many cores busy with this process, so many with others."""
        self.wall += seconds
        self.own += own * seconds
        self.others += others * seconds


def doubts(machine: Machine, threads: int, *spent: float) -> list[str]:
    with watched(CPU, threads) as seen:
        machine.run(*spent)
    return seen.doubts()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("threads", "own", "others", "said"),
    [
        (2, 2.0, 0.0, ""),
        (2, 2.0, 0.05, ""),
        (1, 1.0, 0.9, ""),  # a core is left for it
        (2, 1.2, 0.8, "busy machine: other processes used 0.8 of 2 cores (load 1.5 to 1.5)"),
        (1, 0.5, 1.5, "busy machine: other processes used 1.5 of 2 cores"),
        (1, 0.3, 0.0, "waiting: the processor worked for 30 % of the time"),
    ],
)
def test_what_is_said(machine: Machine, threads: int, own: float, others: float, said: str) -> None:
    told = "".join(doubts(machine, threads, 5.0, own, others))
    assert told.startswith(said)
    assert bool(told) is bool(said)


def test_one_thread_is_advised_where_several_wait_for_each_other(machine: Machine) -> None:
    (several,) = doubts(machine, 2, 5.0, 0.5, 1.5)
    (one,) = doubts(machine, 1, 5.0, 0.5, 1.5)
    assert "--threads 1" in several
    assert "--threads 1" not in one


def test_what_was_too_short_is_not_judged(machine: Machine) -> None:
    assert doubts(machine, 2, 0.1, 0.2, 1.8) == []


def test_where_nothing_can_be_seen_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(module.psutil, "cpu_times", refused)
    with watched(CPU, 1) as seen:
        pass
    assert (seen.doubts(), seen.told()) == ([], {})


def spin(stop: Any) -> None:
    while not stop.is_set():
        pass


@pytest.mark.slow
def test_a_machine_that_is_really_busy() -> None:
    """As many other processes as there are cores, and one more."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    cores = len(module._cores())
    others = [context.Process(target=spin, args=(stop,)) for _ in range(cores + 1)]
    for each in others:
        each.start()
    try:
        result = attn_surgery.report(
            nn.Conv2d(3, 8, 3), (), input_size=(3, 64, 64), seconds=2, threads=1
        )
    finally:
        stop.set()
        for each in others:
            each.join()
    assert any("busy machine" in note for note in result.notes), result.notes
    assert result.provenance["load"]


# The device


def test_a_clock_that_moved() -> None:
    before = DeviceState(1980, 500.0, 60)
    assert before.doubts(DeviceState(1950, 600.0, 70), 0.05) == []
    (moved,) = before.doubts(DeviceState(1200, 600.0, 70), 0.05)
    assert "moved from 1980 to 1200 MHz" in moved
    held = before.doubts(DeviceState(1980, 700.0, 90, ("SwPowerCap",), others=2), 0.05)
    assert held == [
        "the device held its clock back: SwPowerCap",
        "busy device: 2 other processes compute on it",
    ]
    assert before.to(DeviceState(1950, 600.0, 70))["device_power"] == "500 to 600 W"


def nvml(**more: Any) -> Any:
    class NVMLError(Exception):
        pass

    running = [types.SimpleNamespace(pid=1), types.SimpleNamespace(pid=2)]
    return types.SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetPowerUsage=lambda handle: 412_300,
        nvmlDeviceGetTemperature=lambda handle, kind: 51,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0b101,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: running,
        nvmlClocksThrottleReasonGpuIdle=0b1,
        nvmlClocksThrottleReasonSwPowerCap=0b100,
        nvmlClocksThrottleReasonAll=0b111,
        **more,
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    driver = nvml()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    properties = types.SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return driver


def test_what_the_driver_tells(card: Any) -> None:
    state = device_state(torch.device("cuda"))
    assert state == DeviceState(1980, 412.3, 51, ("SwPowerCap",), others=2)


def test_a_part_of_a_card_has_no_state(card: Any) -> None:
    def unknown(uuid: str) -> None:
        raise card.NVMLError("not found")

    card.nvmlDeviceGetHandleByUUID = unknown
    assert device_state(torch.device("cuda")) is None


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_state(torch.device("cuda")) is None
    assert Watched(CPU, 1).doubts() == []


# The command


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (
            "/usr/bin/python3 -m attn_surgery report resnet50",
            "python -m attn_surgery report resnet50",
        ),
        ("/a/python /a/bin/attn-surgery report resnet50", "attn-surgery report resnet50"),
        ("/a/python -X dev -u tools/bench.py --fast", "python bench.py --fast"),
        ("/a/python -c print(1)", "python -c"),
        ("/a/python", "python"),
    ],
)
def test_the_command_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, typed: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed.split())
    assert command() == shown
