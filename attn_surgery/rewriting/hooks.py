"""A forward that runs the host's own and replaces, by hooks, what children return on the way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from attn_surgery.rewriting.insertion import Insertion


def listening(insertions: tuple[Insertion, ...], inner: str) -> Callable[..., Any]:
    """Make a forward with the insertions, each after a child, around the method ``inner``."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as hooks:
            for each in insertions:
                child = self.get_submodule(each.after.name)
                handle = child.register_forward_hook(_Replacing(self, each))
                hooks.callback(handle.remove)
            return getattr(self, inner)(*args, **kwargs)

    return forward


class _Replacing:
    """A hook that passes one of a child's outputs through the attention."""

    def __init__(self, block: nn.Module, insertion: Insertion):
        self.block = block
        self.insertion = insertion
        self.calls = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.calls += 1
        if self.calls - 1 != self.insertion.after.occurrence:
            return output
        attention = self.block.get_submodule(self.insertion.attention)
        if not self.insertion.channels_last_dims:
            return attention(output)
        attended = attention(output.permute(self.insertion.to_maps))
        return attended.permute(self.insertion.from_maps)
