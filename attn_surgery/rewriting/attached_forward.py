"""A forward around the host's own, whose argument or output passes through attention."""

from __future__ import annotations

import inspect
from typing import Any

from attn_surgery.host import compiled


def passing_on(
    parameters: list[inspect.Parameter],
    inner: str,
    before: tuple[str, ...],
    after: tuple[str, ...],
) -> Any:
    """Compile a forward around ``inner`` that runs attention.

    Args:
        parameters: Those of ``inner``.
        inner: The name of the method.
        before: The attentions through which its first argument passes.
        after: The attentions through which its output passes.
    """
    known: dict[str, Any] = {}
    if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        head, given = "*args, **kwargs", ["*args", "**kwargs"]
        if before:
            head, given = f"value, {head}", ["value", *given]
    else:
        head = ", ".join(_declared(each, known) for each in parameters)
        given = [each.name for each in parameters]
    for name in before:
        given[0] = f"self.{name}({given[0]})"
    result = f"self.{inner}({', '.join(given)})"
    for name in after:
        result = f"self.{name}({result})"
    head = f"self, {head}" if head else "self"
    return compiled(f"def forward({head}):\n    return {result}\n", known, "forward")


def _declared(parameter: inspect.Parameter, known: dict[str, Any]) -> str:
    """Write a parameter with its annotation and default, which go into ``known``."""
    text = parameter.name
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        known[f"_type_of_{parameter.name}"] = parameter.annotation
        text += f": _type_of_{parameter.name}"
    if parameter.default is not parameter.empty:
        known[f"_default_of_{parameter.name}"] = parameter.default
        text += f" = _default_of_{parameter.name}"
    return text
