"""The activations that training keeps for the backward pass, without running it on numbers.

A batch of two is run forward in training mode on the meta device, and every tensor that autograd
saves is noted; a batch of one could not train a batch norm on a map of one pixel. The result is
half of the bytes: those of one image, clip or volume. Tensors that share memory count once, an
input that is saved counts, parameters and buffers do not. It is what eager mode keeps: no
checkpointing, no fused kernels, no workspace of a library.
"""

from typing import Any

import torch
from torch import nn

from attn_surgery.host import Input, floating_dtype
from attn_surgery.reporting.counting.data_dependent import EverythingPasses


def count_saved_bytes(copied: nn.Module, given: Input) -> int:
    """Return the bytes of activations that one input keeps for the backward pass.

    Args:
        copied: The model, on the meta device; its mode changes.
        given: The input.

    Raises:
        Exception: Whatever the forward raises in training mode on the meta device.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).to("meta")  # both keep 4-byte floats
        >>> count_saved_bytes(net, Input(((5, 4),))) == 4 * (5 * 4 + 5 * 8)
        True
    """
    copied.train()
    args, kwargs = given.build(batch=2, dtype=floating_dtype(copied))
    own = {_memory(tensor) for tensor in (*copied.parameters(), *copied.buffers())}
    # Held until the end, so that no address is used twice.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta and _memory(tensor) not in own:
            kept[_memory(tensor)] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, _as_it_is)
    with torch.enable_grad(), EverythingPasses(), hooks:
        held = copied(*args, **kwargs)
    del held
    return sum(storage.nbytes() for storage in kept.values()) // 2


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _as_it_is(tensor: Any) -> Any:
    return tensor
