"""Multiply-adds of one forward pass, without running it on numbers.

Counted: convolutions (grouped, transposed and of any dimension) and matrix products, the two of
attention over tokens included. One fused multiply-add is 1, so this is what papers print as
"GFLOPs" and half of what ``torch.utils.flop_counter`` calls FLOPs.

Not counted: bias additions, norms, activations, pooling, scaling, additions, softmax, resampling,
deformable convolutions, FFTs and custom operators. That is nearly all of the work that SE and CBAM
add: their MACs say little about their time.

The pass is one image or clip, in evaluation mode, on a copy of the model on the meta device.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

M = TypeVar("M", bound=nn.Module)

DEFAULT_SIDE = 224
DEFAULT_FRAMES = 16


def meta_copy(model: M) -> M:
    """Return a copy of ``model`` whose parameters and buffers are on the meta device.

    The weights are not copied on the way, so this costs no memory to speak of. Tensors that
    modules share stay shared.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> meta_copy(host).weight.device, host.weight.device
        (device(type='meta'), device(type='cpu'))
    """
    # deepcopy takes what the memo holds for an id instead of copying the object.
    memo = {id(tensor): _to_meta(tensor) for tensor in _tensors(model)}
    return copy.deepcopy(model, memo)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter, buffer and tensor attribute that has a shape."""
    for module in model.modules():
        owned = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        tensors = (value for value in owned if isinstance(value, torch.Tensor))
        yield from (tensor for tensor in tensors if not is_lazy(tensor))


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        copied = tensor.to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; a shared one counts once.

    Example:
        >>> count_params(nn.Linear(2, 3))
        9
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the multiply-adds of one forward pass in evaluation mode.

    Args:
        model: Left as it is; a copy on the meta device is counted.
        input_size: Shape of one input without its batch dimension, ``(C, *spatial)``.

    Raises:
        Exception: Whatever the model's forward raises for that input on the meta device.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10))  # 3 * 8 * 9 * 100
        21600
    """
    # The counter hooks what requires gradients, and fails for a view of a parameter (an expanded
    # class token) that a child gets without a graph.
    counted = meta_copy(model).eval().requires_grad_(False)
    dtype = next((p.dtype for p in counted.parameters() if p.is_floating_point()), None)
    x = torch.empty(1, *input_size, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(x)
    return counter.get_total_flops() // 2


def guess_input_size(model: nn.Module) -> tuple[int, ...]:
    """Return the input that ``model`` was made for, ``(C, *spatial)``.

    timm's models say so themselves. For others it is a guess: channels and number of spatial
    dimensions of the first convolution, 224 a side, 16 frames.

    Example:
        >>> guess_input_size(nn.Sequential(nn.Conv3d(1, 8, 3)))
        (1, 16, 224, 224)
    """
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, dict) else None
        if size:
            return tuple(size)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            spatial = (DEFAULT_FRAMES, DEFAULT_SIDE, DEFAULT_SIDE)
            return (module.in_channels, *spatial[3 - len(module.kernel_size) :])
    return (3, DEFAULT_SIDE, DEFAULT_SIDE)
