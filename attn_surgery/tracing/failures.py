"""Why a forward could not be followed, in words that say nothing of how that is done."""

from __future__ import annotations

import re

from torch import fx
from torch.fx.proxy import TraceError

from attn_surgery.tracing.proxies import Value, ValueWithClass


def one_line(error: Exception) -> str:
    """Write an error of a trace as one line."""
    if isinstance(error, TraceError):
        return "needs to know what a tensor holds, to unpack it"
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if "instead found type 'Value" in text:  # no tensor, to TorchScript
        return "calls a function that TorchScript compiled, which cannot be followed"
    text = re.sub(r"\bProxy\((\w+)\)", r"what \1 holds", text)
    for cls in (Value, ValueWithClass, fx.Proxy):
        text = text.replace(str(cls), "a traced tensor").replace(f"'{cls.__name__}'", "'Tensor'")
        text = re.sub(rf"\b(got|not) {cls.__name__}\b", r"\1 a traced tensor", text)
    return text
