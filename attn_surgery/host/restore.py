"""Keeping the host as it is while its forwards are run: attributes, modes, random states."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn


class Attributes:
    """The attributes of one module, its lists, dicts and sets included, to be put back."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = dict(vars(module))
        self.held = [each for each in self.values.values() if isinstance(each, (dict, list, set))]
        self.contents = [each.copy() if each else () for each in self.held]  # most are empty

    def restore(self) -> bool:
        """Put everything back; return whether anything had been written."""
        now = vars(self.module)
        wrote = not same_items(now, self.values)
        if wrote:
            refill(now, self.values)
        for value, content in zip(self.held, self.contents, strict=True):
            if (value or content) and not same_items(value, content):
                wrote = True
                refill(value, content)
        return wrote


def refill(container: Any, content: Any) -> None:
    """Let a container hold other things than it does, and nothing else, interrupted or not."""
    try:
        _refill(container, content)
    except BaseException:
        _refill(container, content)
        raise


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def same_items(a: Any, b: Any) -> bool:
    """Tell whether two containers hold the very same things."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):  # the order of its names is the order of children
        return list(a) == list(b) and all(map(is_, a.values(), b.values()))
    if isinstance(a, set):
        return a == b
    return all(map(is_, a, b))


@contextmanager
def put_back_afterwards(put_back: Callable[[], object]) -> Iterator[None]:
    """Call ``put_back`` afterwards, and again where an interrupt kept it from its work."""
    try:
        try:
            yield
        finally:
            put_back()
    except BaseException:
        put_back()
        raise


@contextmanager
def in_mode(modules: list[nn.Module], training: bool) -> Iterator[None]:
    """Let every module see ``self.training`` as ``training``; afterwards each its own again."""
    # what is scripted keeps its mode elsewhere, and is not followed inside
    modes = [(vars(module), module.training) for module in modules if "training" in vars(module)]

    def put_back() -> None:
        for own, mode in modes:
            own["training"] = mode

    with put_back_afterwards(put_back):
        for own, _ in modes:
            own["training"] = training
        yield


@contextmanager
def undisturbed_randomness(
    device: torch.device | None = None, seed: int | None = None
) -> Iterator[None]:
    """Put the random states of torch and Python back afterwards: the CPU's and the accelerator's.

    An accelerator that nobody has used so far is not initialised for this, unless it is said that
    it is going to be used: by ``device``, or as torch's default device.

    Args:
        device: What is going to be drawn on, besides the CPU.
        seed: What torch draws from meanwhile, on all that is put back; None is to go on.

    Example:
        >>> with undisturbed_randomness(seed=0):
        ...     drawn = torch.rand(2)
        >>> with undisturbed_randomness(seed=0):
        ...     torch.equal(torch.rand(2), drawn)
        True
    """
    state, (kind, places) = random.getstate(), _accelerators(device or torch.get_default_device())
    with (
        put_back_afterwards(lambda: random.setstate(state)),
        torch.random.fork_rng(places, device_type=kind),
    ):
        if seed is not None:
            # torch's seeds what is not initialised, too, as soon as it is
            (torch if places else torch.default_generator).manual_seed(seed)
        yield


def _accelerators(device: torch.device) -> tuple[str, list[int]]:
    """Return a kind of accelerator, and the numbers of those that may be drawn on."""
    is_meant = device.type not in ("cpu", "meta")
    there = device if is_meant else torch.accelerator.current_accelerator()
    if there is None:
        return "cuda", []
    module = torch.get_device_module(there)
    # MPS has nothing to initialise
    is_used = is_meant or getattr(module, "is_initialized", lambda: True)()
    has_state = hasattr(module, "get_rng_state")
    return there.type, list(range(module.device_count())) if is_used and has_state else []


def likeness(module: nn.Module) -> object:
    """Return what decides the way through ``module.forward``: equal for modules built alike."""
    own = marks(module)
    tensors = [
        (name, tensor is None)
        for named in (module._parameters, module._buffers)
        for name, tensor in named.items()
    ]
    children = [name for name, child in module._modules.items() if child is None]
    below = [(path, type(each)) for path, each in module.named_modules(remove_duplicate=False)]
    return own, tuple(tensors), tuple(children), tuple(below)


def marks(module: nn.Module, usual: Collection[str] = ()) -> tuple[tuple[str, object], ...]:
    """Return what tells the attributes of a module, but for the usual ones, from another's."""
    own = own_attributes(module)
    return tuple((name, _mark(value)) for name, value in own if name not in usual)


def own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that not every module has."""
    return (each for each in vars(module).items() if each[0] not in _MODULE_STATE)


def _mark(value: Any) -> object:
    """Return what tells a value from another: its text if it is plain, else its identity."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (list, tuple)) and all(isinstance(each, _PLAIN) for each in value):
        return repr(value)
    return Tensor if isinstance(value, Tensor) else id(value)  # read in a graph, as buffers are


_PLAIN = (bool, int, float, str, type(None))
_MODULE_STATE = frozenset(vars(nn.Module()))
