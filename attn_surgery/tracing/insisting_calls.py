"""Torch's functions that insist on a string, a dtype or a truth: they are told a guess."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from attn_surgery.host import put_back_afterwards
from attn_surgery.tracing.proxies import Value, guess_of

_PLACES: tuple[tuple[Any, str], ...] = (
    (torch.autocast, "__init__"),
    (torch, "is_autocast_enabled"),
    (torch, "get_autocast_dtype"),
    (torch, "_check"),
)


@contextmanager
def guessed_arguments() -> Iterator[None]:
    """Let such functions be called with what is traced; that there was a guess is on record."""
    originals = [(place, name, getattr(place, name)) for place, name in _PLACES]

    def put_back() -> None:
        for place, name, original in originals:
            setattr(place, name, original)

    with put_back_afterwards(put_back):
        for place, name, original in originals:
            setattr(place, name, _guessing(original))
        yield


def _guess(value: Value) -> Any:
    return guess_of(value, True)


@functools.lru_cache
def _guessing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Value, _guess, (args, kwargs))
        return original(*args, **kwargs)

    return call
