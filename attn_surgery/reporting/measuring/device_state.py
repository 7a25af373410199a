"""The clock, the power and what holds an NVIDIA GPU back, as its driver tells; nothing is set."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import torch

_HARMLESS = {"GpuIdle", "None", "ApplicationsClocksSetting", "UserDefinedClocks"}


@dataclass(frozen=True)
class DeviceState:
    """How a device is at one moment.

    Attributes:
        clock_mhz: Of its multiprocessors.
        power_w: What it draws.
        celsius: Its temperature.
        held_back: What keeps its clock low.
        others: Other processes that compute on it.
    """

    clock_mhz: int
    power_w: float
    celsius: int
    held_back: tuple[str, ...] = ()
    others: int = 0

    def to(self, after: DeviceState) -> dict[str, str]:
        """Tell both ends of a measurement, fit for JSON."""
        return {
            "device_clock": f"{self.clock_mhz} to {after.clock_mhz} MHz",
            "device_power": f"{self.power_w:.0f} to {after.power_w:.0f} W",
            "device_temperature": f"{self.celsius} to {after.celsius} °C",
        }

    def doubts(self, after: DeviceState, tolerance: float) -> list[str]:
        """Return why times taken between two moments may not be the model's, a line each.

        Args:
            after: The later moment.
            tolerance: By which part the clock may have moved.

        Example:
            >>> DeviceState(1980, 300, 50).doubts(DeviceState(1500, 300, 90), 0.05)
            ['the clock of the device moved from 1980 to 1500 MHz while it was measured']
        """
        doubts: list[str] = []
        if abs(after.clock_mhz - self.clock_mhz) > tolerance * max(self.clock_mhz, 1):
            moved = f"from {self.clock_mhz} to {after.clock_mhz} MHz"
            doubts.append(f"the clock of the device moved {moved} while it was measured")
        if held := sorted({*self.held_back, *after.held_back}):
            doubts.append(f"the device held its clock back: {', '.join(held)}")
        if others := max(self.others, after.others):
            doubts.append(f"busy device: {others} other process{'es' * (others > 1)} compute on it")
        return doubts


def device_state(device: torch.device) -> DeviceState | None:
    """Ask NVML, where ``nvidia-ml-py`` is installed; None for every other device.

    Example:
        >>> device_state(torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or it finds no driver
        return None
    try:
        properties: Any = torch.cuda.get_device_properties(device)
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        return DeviceState(
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            _held_back(nvml, handle),
            _others(nvml, handle),
        )
    except (nvml.NVMLError, AttributeError):  # a part of a device has no state of its own
        return None
    finally:
        nvml.nvmlShutdown()


def _held_back(nvml: Any, handle: Any) -> tuple[str, ...]:
    """Return the driver's own names for what is behind a low clock."""
    prefix = "nvmlClocksThrottleReason"
    bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    reasons = {
        name.removeprefix(prefix): value
        for name, value in vars(nvml).items()
        if name.startswith(prefix) and isinstance(value, int)
    }
    single = {name: bit for name, bit in reasons.items() if bit and not bit & (bit - 1)}
    held = (name for name, bit in single.items() if bits & bit and name not in _HARMLESS)
    return tuple(sorted(held))


def _others(nvml: Any, handle: Any) -> int:
    """Count the other processes; in a container none may bear this one's number."""
    running = [each.pid for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    mine = 1 if os.getpid() in running or len(running) == 1 else 0
    return len(running) - mine
