"""The conditions of a measurement, and the process brought into them and back."""

import contextlib
import gc
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.reporting.measuring.graphs import check_graphs

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Conditions:
    """How models are measured.

    Attributes:
        device: Where.
        batch_size: Inputs in one call.
        dtype: What parameters and inputs are converted to; None leaves them.
        autocast: The dtype of ``torch.autocast``; None is without.
        channels_last: Convert weights and inputs to the channels-last memory format.
        compile: Run through ``torch.compile``: the whole model (True), or "attention" for what was
            inserted alone.
        graph: Time the forward pass as a captured CUDA graph, too.
        threads: CPU threads while measuring; None leaves them.
        seconds: Stop after this time, warm-up apart, with ten rounds at least.
    """

    device: torch.device
    batch_size: int = 1
    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    channels_last: bool = False
    compile: bool | str = False
    graph: bool = False
    threads: int | None = None
    seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise SurgeryError(f"{name}={value!r}: must be a whole number from 1 on")
        if not 0 <= self.seconds < float("inf"):
            raise SurgeryError(f"seconds={self.seconds!r}: must be a time from 0 on")
        if self.compile not in (False, True, "attention"):
            raise SurgeryError(f"compile={self.compile!r}: must be True, False or 'attention'")
        if self.graph:
            check_graphs(self.device)

    @property
    def cpu_threads(self) -> int:
        """The threads of this process that work while measuring."""
        return self.threads or torch.get_num_threads() if self.device.type == "cpu" else 1

    def converted(self, model: nn.Module) -> nn.Module:
        """Bring a copy into the dtype and the memory format, in place."""
        if self.dtype is not None:
            model.to(self.dtype)
        if self.channels_last:
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.data = self.laid_out(tensor.data)
        return model

    def laid_out(self, value: Any) -> Any:
        """Bring a tensor with two or three spatial dimensions into the memory format."""
        layout = _LAYOUTS.get(value.dim()) if isinstance(value, torch.Tensor) else None
        return value.contiguous(memory_format=layout) if self.channels_last and layout else value

    def autocasting(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context, or one that does nothing."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Set threads, and hold the garbage collector back; afterwards all is as it was.

        Code that was compiled before is compiled anew when it is next used: models of one class
        would otherwise share a limit, beyond which PyTorch silently runs without compiling.
        """
        threads, collecting = torch.get_num_threads(), gc.isenabled()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            if self.compile:
                torch.compiler.reset()
            gc.disable()
            yield
        finally:
            torch.set_num_threads(threads)
            if self.compile:
                torch.compiler.reset()
            if collecting:
                gc.enable()

    def provenance(self) -> dict[str, Any]:
        """Return what a reader needs to know about a measurement, fit for JSON."""
        return {
            "device": device_name(self.device),
            "threads": self.threads or torch.get_num_threads(),
            "dtype": _word(self.dtype) or "as loaded",
            "autocast": _word(self.autocast),
            "memory_format": "channels_last" if self.channels_last else "contiguous",
            "compile": self.compile,
            "batch_size": self.batch_size,
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "command": command(),
        }


def command() -> str:
    """Return the command of this process as it was typed, programs by their names.

    What stands behind ``-c`` is left out.

    Example:
        >>> command().startswith("python") or "pytest" in command()
        True
    """
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-m":
            return shlex.join(["python", "-m", *words])
        if word == "-c":
            return "python -c"
        if word in {"-X", "-W"}:
            next(words, None)
        elif not word.startswith("-"):
            script = Path(word)
            python = ["python"] if script.suffix == ".py" else []
            return shlex.join([*python, script.name.removesuffix(".exe"), *words])
    return "python"


def _word(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def accelerator() -> torch.device | None:
    """Return the machine's accelerator, if it has one that works."""
    return torch.accelerator.current_accelerator(check_available=True)


def checked_device(device: torch.device | str) -> torch.device:
    """Return a device that can be measured on.

    Raises:
        SurgeryError: It is unknown, absent, or has no numbers (meta).

    Example:
        >>> checked_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SurgeryError(f"unknown device {device!r}: {one_line(error)}") from None
    if device.type == "cpu":
        return device
    there = accelerator()
    count = torch.accelerator.device_count() if there else 0
    if there is None or device.type != there.type or (device.index or 0) >= count:
        names = ["cpu", *(f"{there.type}:{index}" for index in range(count) if there)]
        raise SurgeryError(
            f"device {str(device)!r} is not there to measure on; this machine has "
            f"{', '.join(names)}"
        )
    return device


def checked_dtype(dtype: torch.dtype | str | None, name: str) -> torch.dtype | None:
    """Return a dtype of floating point from itself or its name.

    Raises:
        SurgeryError: It is none.

    Example:
        >>> checked_dtype("bfloat16", "dtype")
        torch.bfloat16
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise SurgeryError(
        f"{name}={dtype!r} is no dtype of floating point, such as float16 or bfloat16"
    )


def device_name(device: torch.device) -> str:
    """Return what the device calls itself, never the machine's name.

    Example:
        >>> bool(device_name(torch.device("cpu")))
        True
    """
    if device.type == "cpu":
        return _cpu_name()
    asked = getattr(torch.get_device_module(device), "get_device_properties", None)
    return device.type if asked is None else str(getattr(asked(device), "name", device.type))


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip() not in {"", "unknown"}:
                return value.strip()
    return platform.processor() or platform.machine()
