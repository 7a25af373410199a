"""The kernels of convolutions by function: where they are from, and in which shape."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx, nn

from attn_surgery.dataflow.called_functions import argument, function_name
from attn_surgery.tracing import Trace


def viewed_shape(kernel: Any) -> tuple[Any, ...] | None:
    """Return the shape that a computed kernel is viewed in, None for each size unknown here."""
    if not isinstance(kernel, fx.Node) or not kernel.op.startswith("call_"):
        return None
    if function_name(kernel) == "unflatten":
        sizes = argument(kernel, 2, "sizes")
        shape = (sizes,) if argument(kernel, 1, "dim") == 0 else ()
    elif function_name(kernel) in ("view", "reshape"):
        shape = kernel.args[1:]
    else:
        return None
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    sizes = tuple(size if isinstance(size, int) and size > 0 else None for size in shape)
    return sizes if len(sizes) >= 3 and None not in sizes[2:] else None


def tensor_behind(trace: Trace, value: Any) -> Tensor | None:
    """Return the parameter (else the buffer) from which a kernel is computed, the largest one."""
    if not isinstance(value, fx.Node):
        return None
    found: list[Tensor] = []
    pending, seen = [value], {value}
    while pending:
        node = pending.pop()
        if node.op == "get_attr":
            tensor = trace.attribute(node)
            found += [tensor] if isinstance(tensor, Tensor) else []
        elif node.op == "call_module":  # a parametrization
            found += trace.module_at(str(node.target)).parameters()
        new = [other for other in node.all_input_nodes if other not in seen]
        seen.update(new)
        pending += new
    kernels = [tensor for tensor in found if tensor.dim() >= 2]
    return max(kernels, key=_is_learned_and_large, default=None)


def _is_learned_and_large(tensor: Tensor) -> tuple[bool, int]:
    return isinstance(tensor, nn.Parameter), math.prod(tensor.shape)
