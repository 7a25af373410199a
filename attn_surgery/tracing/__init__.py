"""What a trace is, and how one is made of a module's forward.

A trace (`Trace`) is a ``torch.fx`` graph whose nodes know in which call of which module, and where
in the code, they were made. `trace` makes them: it follows a forward along its ways, children kept
whole or followed inside, and leaves the host as it was. Nothing here knows what a residual block
is.
"""

from attn_surgery.tracing.einops_calls import (
    Side,
    is_layer_of_patterns,
    name_of_function,
    pattern_of,
    sides,
)
from attn_surgery.tracing.module_calls import modules_intercepted
from attn_surgery.tracing.proxies import is_primitive
from attn_surgery.tracing.returned_values import is_returned
from attn_surgery.tracing.symbolic_trace import trace
from attn_surgery.tracing.trace_graph import (
    Call,
    Trace,
    baked_constant,
    called_path,
    index,
    is_opaque,
    owner,
)

__all__ = [
    "Call",
    "Side",
    "Trace",
    "baked_constant",
    "called_path",
    "index",
    "is_layer_of_patterns",
    "is_opaque",
    "is_primitive",
    "is_returned",
    "modules_intercepted",
    "name_of_function",
    "owner",
    "pattern_of",
    "sides",
    "trace",
]
