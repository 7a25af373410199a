"""einops: its functions, which a trace keeps whole, and what their patterns do to a tensor."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from attn_surgery.host import put_back_afterwards

_FUNCTIONS = {
    "einops.einops": ("rearrange", "reduce", "repeat", "einsum"),
    "einops.packing": ("pack", "unpack"),
}
_RECORDER = "_record_for_attn_surgery"


@contextmanager
def recorded_patterns(tracer: Any) -> Iterator[None]:
    """Let einops' functions, however they were imported, be steps of the trace.

    They ask what a tensor is and how many dims it has, which is not known of a traced value.
    """
    functions = list(_loaded())
    codes = [function.__code__ for function in functions]

    def put_back() -> None:
        for function, code in zip(functions, codes, strict=True):
            function.__code__ = code
            vars(sys.modules[function.__module__]).pop(f"{_RECORDER}_{function.__name__}", None)

    with put_back_afterwards(put_back):
        for function in functions:
            name = f"{_RECORDER}_{function.__name__}"
            function.__globals__[name] = _recorded(tracer, function)
            scope: dict[str, Any] = {}
            exec(f"def call(*args, **kwargs):\n    return {name}(*args, **kwargs)\n", scope)
            function.__code__ = scope["call"].__code__
        yield


def _loaded() -> Iterator[types.FunctionType]:
    for home, names in _FUNCTIONS.items():
        for name in names if home in sys.modules else ():
            found = getattr(sys.modules[home], name, None)
            if isinstance(found, types.FunctionType):
                yield found


def _recorded(tracer: Any, function: types.FunctionType) -> Callable[..., Any]:
    whole = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    whole.__kwdefaults__ = function.__kwdefaults__

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return whole(*args, **kwargs)

    return call


def is_layer_of_patterns(module: nn.Module) -> bool:
    """Tell whether the module is one of einops' own."""
    return type(module).__module__.startswith("einops.layers.")


def called_for(module: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return what does the same as one of einops' layers without weights.

    Returns:
        The function, its arguments after the tensor, and its keywords.
    """
    home: Any = sys.modules["einops"]
    if hasattr(module, "reduction"):
        return home.reduce, (module.pattern, module.reduction), dict(module.axes_lengths)
    return home.rearrange, (module.pattern,), dict(module.axes_lengths)


Side = list[str]
"""The axes of one side of a pattern, each a name, a number, ``...`` or a group in parentheses."""


def sides(pattern: str) -> tuple[Side, Side] | None:
    """Split a pattern of one tensor into the axes on its left and on its right.

    Example:
        >>> sides("b c (h w) -> (b 1) c ...")
        (['b', 'c', '(h w)'], ['(b 1)', 'c', '...'])
    """
    before, arrow, after = pattern.partition("->")
    if not arrow or "," in before:
        return None
    left, right = (
        [" ".join(each.split()) for each in _AXIS.findall(one)] for one in (before, after)
    )
    return left, right


_AXIS = re.compile(r"\([^)]*\)|\S+")


def pattern_of(node: fx.Node, module: nn.Module | None) -> str | None:
    """Return the pattern by which a step of einops' rearranges one tensor, or None."""
    if module is not None:
        return getattr(module, "pattern", None) if is_layer_of_patterns(module) else None
    if name_of_function(node) not in ("rearrange", "reduce", "repeat"):
        return None
    pattern = node.args[1] if len(node.args) > 1 else node.kwargs.get("pattern")
    return pattern if isinstance(pattern, str) else None


def name_of_function(node: fx.Node) -> str:
    """Return which of einops' functions the node calls, or ""."""
    home = getattr(node.target, "__module__", None)
    return getattr(node.target, "__name__", "") if home in _FUNCTIONS else ""
