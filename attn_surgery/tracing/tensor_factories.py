"""Torch's factories and the like, which a trace has to record: they take no traced values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.overrides import get_testing_overrides, is_tensor_method_or_property
from torch.utils._pytree import tree_leaves

from attn_surgery.host import put_back_afterwards
from attn_surgery.tracing.module_calls import tracer_at_work

FACTORIES = (
    *"zeros ones empty full eye tensor as_tensor asarray scalar_tensor arange range".split(),
    *"linspace logspace rand randn randint randperm normal empty_strided empty_permuted".split(),
    *"tril_indices triu_indices bartlett_window blackman_window hamming_window".split(),
    *"hann_window kaiser_window".split(),
)
ABOUT_VALUES = ("finfo", "iinfo", "broadcast_shapes")
"""These make no tensors."""


@contextmanager
def recorded_factories() -> Iterator[None]:
    """Let these functions take traced values, for the tracer at work."""
    # these note all of torch's functions when first asked, for good: not what stands there now
    get_testing_overrides()
    is_tensor_method_or_property(torch.add)
    originals = {name: getattr(torch, name) for name in (*FACTORIES, *ABOUT_VALUES)}

    def put_back() -> None:
        for name, original in originals.items():
            setattr(torch, name, original)

    with put_back_afterwards(put_back):
        for name, original in originals.items():
            setattr(torch, name, _recorded(original, name in FACTORIES))
        yield


@functools.lru_cache
def _recorded(original: Callable[..., Any], makes_tensors: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = tracer_at_work()
        if tracer is None:
            return original(*args, **kwargs)
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", original, args, kwargs)
        tracer.constants |= makes_tensors
        return original(*args, **kwargs)

    return call
