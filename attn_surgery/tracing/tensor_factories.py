"""Torch's factories, which a trace has to record: they take sizes, no tensors."""

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


@contextmanager
def recorded_factories(tracer: Any) -> Iterator[None]:
    """Let torch's factories take traced sizes, which their parsers would refuse."""
    # these note all of torch's functions when first asked, for good: not what stands there now
    get_testing_overrides()
    is_tensor_method_or_property(torch.add)
    originals = {name: getattr(torch, name) for name in FACTORIES}

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def make(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
                return tracer.create_proxy("call_function", original, args, kwargs)
            tracer.constants = True
            return original(*args, **kwargs)

        return make

    def put_back() -> None:
        for name, original in originals.items():
            setattr(torch, name, original)

    with put_back_afterwards(put_back):
        for name, original in originals.items():
            setattr(torch, name, recorded(original))
        yield


FACTORIES = (
    "zeros ones empty full eye tensor arange linspace rand randn randint randperm normal".split()
)
