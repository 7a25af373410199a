"""What a node of a trace calls, and with which arguments."""

from __future__ import annotations

from typing import Any

from torch import fx


def function_name(node: fx.Node) -> str:
    """Return what the function or method is called, in-place or not, reflected or not."""
    target = node.target
    name = target if isinstance(target, str) else callable_name(target)
    if name.startswith("__") and name.endswith("__"):
        return name[2:-2]
    return name.rstrip("_")


def callable_name(target: Any) -> str:
    """Return what a function is called by torch."""
    schema = getattr(target, "_schema", None)  # an OpOverload: aten::add.Tensor
    if schema is not None:
        return schema.name.rpartition("::")[2]
    return getattr(target, "__name__", type(target).__name__)


def argument(node: fx.Node, position: int, name: str) -> Any:
    """Return the argument at ``position`` or called ``name``; None where neither was given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)
