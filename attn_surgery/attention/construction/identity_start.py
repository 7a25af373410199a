"""The identity start of an attention that does not bring one, and the trial that shows its need."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, is_exhausted
from attn_surgery.host import in_mode, lent_tensors

_SIDES = (8, 14)
"""Sides of the maps that an attention is tried on: a multiple of 8, and one of 7."""


class IdentityStart(nn.Module):
    """Let any shape-preserving module start as the identity: ``x - alpha * (x - f(x))``.

    ``alpha``, ``(1,)``, starts at 0 and is learned (ReZero, Bachlechner et al. 2020,
    arXiv:2003.04887, eq. 2, with f(x) - x for their F); at 1 the module is f. At the first step
    the gradient reaches ``alpha`` alone. The values equal those of x for every finite f(x), but a
    negative zero may come out as a positive one, unless f scales the map by a positive gate. The
    output has the memory layout of x.

    Shapes: those of x, whatever they are.

    Args:
        f: The module that is wrapped.
        alpha: Where ``alpha`` starts: 0, or 1 for an f whose values are those of x by itself.

    Example:
        >>> x = torch.randn(2, 8, 4, 4)
        >>> torch.equal(IdentityStart(nn.Sigmoid())(x), x)
        True
    """

    def __init__(self, f: nn.Module, alpha: float = 0.0):
        super().__init__()
        self.f = f
        self.alpha = nn.Parameter(torch.full((1,), alpha))  # FSDP2 takes no parameter of shape ()

    def forward(self, x: Tensor) -> Tensor:
        """Blend x and f(x): shape and dtype of x."""
        y = self.f(x)
        # Not a raise: torch.fx can trace it. Broadcasting would hide an f that returns a gate.
        torch._assert(y.shape == x.shape, "the wrapped attention must return the shape it is given")
        return x - (self.alpha.squeeze() * (x - y)).to(x.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        key = f"{prefix}alpha"
        if key in state_dict and not state_dict[key].dim():  # as it was before FSDP2 was thought of
            state_dict[key] = state_dict[key].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *others, **named)


def check_forward(attention: nn.Module, channels: int, spatial_dims: int) -> None:
    """Run an attention on a small map.

    Args:
        attention: The module; a copy of it is run, where its parameters are, or itself, put back.
        channels: C of the map.
        spatial_dims: How many spatial dimensions the map has.

    Raises:
        SurgeryError: It fails on maps of every size tried, or returns something else than a map
            of the same shape.

    Example:
        >>> check_forward(nn.Conv2d(8, 8, 1), channels=8, spatial_dims=2)
        >>> check_forward(nn.AdaptiveAvgPool2d(1), channels=8, spatial_dims=2)
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: maps (2, 8, 8, 8) to (2, 8, 1, 1), not to the same shape
    """
    x, y = _tried(attention, channels, spatial_dims, training=False)
    if not isinstance(y, Tensor):
        raise SurgeryError(f"returns a {type(y).__name__}, not a map like the one it is given")
    if y.shape != x.shape:
        raise SurgeryError(f"maps {tuple(x.shape)} to {tuple(y.shape)}, not to the same shape")


def starts_as_identity(attention: nn.Module, channels: int, spatial_dims: int) -> bool:
    """Tell whether an attention returns the values of its map unchanged, in both modes.

    Such a one gets no gradient within ``IdentityStart`` with alpha = 0: x - f(x) is zero.

    Args:
        attention: The module, not on the meta device; a copy of it is run.
        channels: C of its maps.
        spatial_dims: How many spatial dimensions they have.

    Example:
        >>> starts_as_identity(nn.Identity(), 8, 2), starts_as_identity(nn.Sigmoid(), 8, 2)
        (True, False)
    """
    results = (_tried(attention, channels, spatial_dims, training=mode) for mode in (False, True))
    return all(isinstance(y, Tensor) and torch.equal(x, y) for x, y in results)


def keeps_layout(attention: nn.Module, channels: int, spatial_dims: int) -> bool:
    """Tell whether an attention returns maps in memory as it gets them, channels last too.

    Where it does not, what follows it may take another kernel, whose values differ in the last bit.

    Args:
        attention: As for ``starts_as_identity``.
        channels: As for ``starts_as_identity``.
        spatial_dims: As for ``starts_as_identity``.

    Example:
        >>> keeps_layout(nn.Identity(), 8, 2), keeps_layout(nn.Flatten(0), 8, 2)
        (True, False)
    """
    results = (
        _tried(attention, channels, spatial_dims, training=False, channels_last=last)
        for last in (False, True)
    )
    return all(isinstance(y, Tensor) and x.stride() == y.stride() for x, y in results)


def takes_any_batch(attention: nn.Module, channels: int, spatial_dims: int) -> bool:
    """Tell whether an attention takes a batch of no maps, and a map alone as a batch of one.

    Args:
        attention: As for ``starts_as_identity``.
        channels: As for ``starts_as_identity``.
        spatial_dims: As for ``starts_as_identity``.

    Example:
        >>> takes_any_batch(nn.Sigmoid(), 8, 2), takes_any_batch(nn.Softmax(1), 8, 2)
        (True, False)
    """
    x, _ = _tried(attention, channels, spatial_dims, training=False)
    try:
        with (
            _on_trial(attention, training=False) as tried,
            torch.no_grad(),
            x.device,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            first, alone, none = tried(x[:1].clone()), tried(x[0].clone()), tried(x[:0].clone())
    except Exception as error:  # whatever it raises or warns of, it does not take them
        if is_exhausted(error):
            raise
        return False
    return torch.equal(alone, first.squeeze(0)) and none.shape == x[:0].shape


def _like(attention: nn.Module) -> Tensor:
    """Return a tensor of the device and the dtype that an attention works in."""
    tensors = [*attention.parameters(), *attention.buffers()]
    device = tensors[0].device if tensors else "cpu"
    dtype = next((each.dtype for each in tensors if each.is_floating_point()), None)
    return torch.empty(0, device=device, dtype=dtype)


@contextmanager
def _on_trial(attention: nn.Module, *, training: bool) -> Iterator[nn.Module]:
    """Yield a copy of an attention, or, where none can be made, itself on copies of its tensors."""
    try:
        copied = copy.deepcopy(attention).train(training)
    except Exception as error:  # a lock, a generator, a tensor that was computed
        if is_exhausted(error):
            raise
    else:
        yield copied
        return
    with lent_tensors(attention, Tensor.clone), in_mode([*attention.modules()], training):
        yield attention


def _tried(
    attention: nn.Module,
    channels: int,
    spatial_dims: int,
    *,
    training: bool,
    channels_last: bool = False,
) -> tuple[Tensor, object]:
    like = _like(attention)
    failure = ""
    for side in _SIDES:
        shape = (2, channels, *[side] * spatial_dims)
        x = torch.randn(shape, device=like.device, dtype=like.dtype)
        if channels_last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        try:
            with _on_trial(attention, training=training) as tried, torch.no_grad(), like.device:
                return x, tried(x.clone())
        except Exception as error:
            if is_exhausted(error):
                raise
            failure = f"fails on a map {shape}: {type(error).__name__}: {error}"
    raise SurgeryError(failure)
