"""Batch norms that go by the batches of all processes, as one process goes by the whole batch.

No module is replaced: torch's function that all of them call is another one for a while. So
attention that is attached to a norm stays there, hooks and keys stay, and what is saved holds
ordinary norms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm

_of_this_process = F.batch_norm


@contextlib.contextmanager
def synchronized_norms(accelerator: Any) -> Iterator[None]:
    """Let batch norms in training mode normalize by, and follow, the batches of all processes.

    It has to last until the gradients are there: checkpoints run norms again on the way back. With
    one process nothing happens. Norms that normalize by their running statistics do so still.
    Norms that do not call ``torch.nn.functional.batch_norm`` by that name, as scripted ones, go by
    their own process.

    Args:
        accelerator: Accelerate's. Its processes may have batches ``(N, C, *spatial)`` of unlike N
            and spatial size, but all have to call the same norms.

    Raises:
        ValueError: When a norm runs on a single value for each channel, in all processes together.

    Example:
        >>> import accelerate
        >>> norm, x = torch.nn.BatchNorm2d(3), torch.randn(8, 3, 4, 4)
        >>> with synchronized_norms(accelerate.Accelerator(cpu=True)):
        ...     together = norm(x)
        >>> torch.equal(together, norm(x))
        True
    """
    if accelerator.num_processes == 1:
        yield
        return
    # A mode of torch functions would do, but that is off on the way back.
    former, F.batch_norm = F.batch_norm, _of_all_processes
    try:
        yield
    finally:
        F.batch_norm = former


def _of_all_processes(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what ``torch.nn.functional.batch_norm`` does, over all processes."""
    running = running_mean, running_var
    if not training:
        return _of_this_process(x, *running, weight, bias, training, momentum, eps)
    if x.device.type == "cpu":
        return _normalized(x, *running, weight, bias, momentum, eps)
    world = dist.group.WORLD
    return SyncBatchNorm.apply(
        x, weight, bias, *running, eps, momentum, world, dist.get_world_size()
    )


def _normalized(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Do the same on a CPU, where torch's own refuses: ``(N, C, *spatial)`` -> the same shape."""
    dims, channels = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    count = float(_Total.apply(x.new_tensor(x.numel() // x.shape[1], dtype=torch.float64)))
    if count <= 1:
        raise ValueError("expected more than 1 value per channel, of all processes, in training")
    mean = _Total.apply(values.sum(dims, dtype=torch.float64)) / count
    centred = values - mean.to(values.dtype).view(channels)
    var = _Total.apply(centred.square().sum(dims, dtype=torch.float64)) / count
    _follow(running_mean, mean, momentum)
    _follow(running_var, var * (count / (count - 1)), momentum)
    out = centred * (var + eps).rsqrt().to(values.dtype).view(channels)
    if weight is not None:
        out = out * weight.view(channels)
    if bias is not None:
        out = out + bias.view(channels)
    return out.to(x.dtype)


@torch.no_grad()
def _follow(running: Tensor | None, seen: Tensor, momentum: float) -> None:
    if running is not None:
        running.lerp_(seen.to(running.dtype), momentum)


class _Total(torch.autograd.Function):
    """The sum over all processes, through which gradients of all of them flow back."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Total.apply(*grads)
