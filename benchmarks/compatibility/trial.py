"""One model in one use."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

ROUNDING = 2.0
"""How many times eager mode's own distance from float64 another way may be away from it."""


@dataclass
class Trial:
    """A model that a use may change, and what goes in.

    Attributes:
        model: In evaluation mode.
        x: Two inputs.
        larger: Three of twice the size.
        host_error: What the same use of the host alone lost by being approximate; None where that
            is not known.
    """

    model: nn.Module
    x: Tensor
    larger: Tensor
    host_error: float | None = None
    error: float = 0.0

    @property
    def several(self) -> list[Tensor]:
        """Inputs of two batches and two sizes."""
        return [self.x, self.larger]

    @cached_property
    def expected(self) -> Tensor:
        """What the model returns in eager mode."""
        with torch.no_grad():
            return self.model(self.x)

    @property
    def dynamic(self) -> Any:
        """The dimensions of an input that may change: the batch and the size."""
        return (dict.fromkeys((0, *range(2, self.x.dim())), Dim.DYNAMIC),)

    @cached_property
    def onnx(self) -> bytes:
        """What the dynamo exporter writes."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder, "model.onnx")
            program: Any = torch.onnx.export(
                self.model, (self.x,), dynamo=True, dynamic_shapes=self.dynamic, verbose=False
            )
            program.save(str(path), external_data=False)
            return path.read_bytes()

    @torch.no_grad()
    def same(self, found: Tensor, x: Tensor | None = None, tolerance: float = 1e-4) -> None:
        """Check that an output is what eager mode gives, but for rounding.

        A network can be such that rounding grows. So what differs from eager mode may also be
        as near to the output in float64, as eager mode is itself, but for a factor.

        Args:
            found: The output.
            x: What went in, where that is not `x`.
            tolerance: The difference that there may be, as a part of the length.

        Raises:
            ValueError: It is not.
        """
        x = self.x if x is None else x
        expected = self.model(x)
        error = relative_error(found, expected)
        if error <= tolerance:
            return
        exact = self.in_float64().model(x.double())
        own = relative_error(expected, exact)
        if not relative_error(found, exact) <= ROUNDING * own:
            raise ValueError(
                f"the numbers differ by {error:.2g} of their length (by {own:.2g} in float64)"
            )

    def in_float64(self) -> Trial:
        """Return the same in float64.

        In float32, rounding decides on which side of its kink a ReLU near zero is, and with it the
        gradient.
        """
        model = copy.deepcopy(self.model).double()
        return Trial(model, self.x.double(), self.larger.double())

    def gradient(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient of the sum of squares with respect to the input."""
        x = self.x.clone().requires_grad_()
        (found,) = torch.autograd.grad(run(x).square().sum(), x)
        return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the length of the difference as a part of the length."""
    found, expected = found.detach().double(), expected.detach().double()
    if found.shape != expected.shape:
        raise ValueError(f"{tuple(found.shape)} came out, not {tuple(expected.shape)}")
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Check that two tensors are the same but for rounding.

    Raises:
        ValueError: They are not.
    """
    error = relative_error(found, expected)
    if not error <= tolerance:
        raise ValueError(f"the numbers differ by {error:.2g} of their length")
