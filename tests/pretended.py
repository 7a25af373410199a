"""An accelerator for machines without one: a module of torch whose generators are the CPU's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


class Accelerator:
    """Stands for ``torch.cuda`` (or another kind), as far as randomness goes.

    Args:
        monkeypatch: Puts everything back.
        kind: ``cuda``, ``xpu`` or ``mps``.
        is_initialized: Whether it was used before; MPS has no such state.
        count: How many there are.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kind: str = "cuda",
        *,
        is_initialized: bool = True,
        count: int = 2,
    ):
        self.kind, self.is_initialized = kind, is_initialized
        self.generators = [torch.Generator().manual_seed(i) for i in range(count)]
        self.seeds: list[int] = []
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: self.device)
        module: ModuleType = getattr(torch, kind)
        patched: dict[str, Any] = {
            "device_count": lambda: count,
            "get_rng_state": self._state,
            "set_rng_state": self._set_state,
            "manual_seed" if kind == "mps" else "manual_seed_all": self._seed,
        }
        if kind != "mps":
            patched["is_initialized"] = lambda: self.is_initialized
        for name, value in patched.items():
            monkeypatch.setattr(module, name, value)

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind)

    def states(self) -> list[list[int]]:
        return [each.get_state().tolist() for each in self.generators]

    def draw(self) -> list[float]:
        self.is_initialized = True
        return [float(torch.rand((), generator=each)) for each in self.generators]

    def _state(self, place: int) -> Tensor:
        self.is_initialized = True
        return self.generators[place].get_state()

    def _set_state(self, state: Tensor, place: int) -> None:
        self.generators[place].set_state(state)

    def _seed(self, seed: int) -> None:
        """Seed all; what is not initialised would be, as soon as it is."""
        self.seeds.append(seed)
        for each in self.generators:
            each.manual_seed(seed)
