"""What a loss says of each attention at its start: gradients over batches, and their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.surgery import inserted

Loss = Callable[[nn.Module, Any], Tensor]
"""Of a model on a batch: a scalar tensor."""


@dataclass
class Gradient:
    """The gradient of one attention's parameters, over batches.

    Attributes:
        batches: How many there were.
        total: The sum.
        squares: The sum of the squares.
    """

    batches: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, gradient: Tensor) -> None:
        """Count one batch's, as one vector."""
        self.batches += 1
        self.total = self.total + gradient
        self.squares = self.squares + gradient.square()

    @property
    def mean(self) -> Tensor:
        """Over the batches."""
        return torch.as_tensor(self.total / self.batches)

    @property
    def noise(self) -> Tensor:
        """The variance of the mean, as batches differ."""
        spread = (self.squares / self.batches - self.mean.square()).clamp_min(0)
        return spread / (self.batches - 1)


@dataclass(frozen=True)
class Gradients:
    """What the loss said.

    Attributes:
        by_path: The path of each attention -> its gradient.
        shapes: The path of each attention -> the shape of the first maps that it was given,
            ``(N, C, *spatial)``; none where it was given none.
        batches: How many batches there were.
        called: Positional and keyword arguments of the model's first call; None without one.
    """

    by_path: Mapping[str, Gradient]
    shapes: Mapping[str, tuple[int, ...]]
    batches: int
    called: tuple[tuple[Any, ...], dict[str, Any]] | None


def gradients_of(model: nn.Module, batches: Iterable[Any], loss: Loss) -> Gradients:
    """Take the gradient of every attention on each batch.

    Args:
        model: A host with attention, which nobody needs afterwards as it was.
        batches: What ``loss`` takes.
        loss: Of a model on a batch.

    Raises:
        SurgeryError: There are fewer than two batches, or the loss is no number, or depends on no
            attention.
    """
    model.requires_grad_(False)
    attentions = inserted(model)
    for each in attentions.values():
        each.requires_grad_(True)
    found = {path: Gradient() for path in attentions}
    number = 0
    with _calls_of(model) as calls, _shapes_at(attentions) as shapes, torch.enable_grad():
        for batch in batches:
            _backward(loss(model, batch), number)
            for path, each in attentions.items():
                found[path].add(_taken(each))
            number += 1
    if number < 2:
        raise SurgeryError(
            f"batches has {number}, and noise is told by how batches differ: give 2 or more, best "
            "20"
        )
    return Gradients(found, shapes, number, calls[0] if calls else None)


def _backward(value: Tensor, number: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise SurgeryError(f"loss(model, batch) must be a scalar tensor, not {value!r}")
    if not value.isfinite():
        raise SurgeryError(f"loss(model, batch) is {value.item()} for batch {number}")
    if not value.requires_grad:
        raise SurgeryError(
            "loss(model, batch) depends on no attention: it must call the model that it is given, "
            "with gradients"
        )
    value.backward()


def _taken(attention: nn.Module) -> Tensor:
    """Return the gradient as one vector, and leave none behind."""
    parts = [torch.zeros(0, dtype=torch.float64)]
    for parameter in attention.parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(own.detach().flatten().cpu().double())
        parameter.grad = None
    return torch.cat(parts)


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Note what the model is first called with."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            calls.append((args, kwargs))

    with model.register_forward_pre_hook(note, with_kwargs=True):
        yield calls


@contextmanager
def _shapes_at(attentions: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Note the shape of the first maps that each attention is given."""
    shapes: dict[str, tuple[int, ...]] = {}

    def noting(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            shapes.setdefault(path, tuple(given[0].shape))

        return note

    with ExitStack() as stack:
        for path, each in attentions.items():
            stack.enter_context(each.register_forward_pre_hook(noting(path)))
        yield shapes
