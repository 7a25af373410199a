"""Which tensors and modules are what they seem, so that eager work on them may be rearranged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._C import (  # pyright: ignore[reportAttributeAccessIssue]
    _are_functorch_transforms_active,
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


def is_ordinary(x: Tensor) -> bool:
    """Tell whether a tensor holds numbers that nobody but autograd in reverse looks at.

    That is not so of proxies and fakes, of subclasses, within ``vmap``, ``jvp``, ``grad`` of
    ``torch.func``, ``compile``, ``export`` and tracing, under a mode that sees every operation (a
    counter, a device context), under autocast and with hooks on all modules.

    Example:
        >>> x = torch.zeros(2, 8, 4, 4)
        >>> with torch.device("cpu"):
        ...     watched = is_ordinary(x)
        >>> is_ordinary(x), watched
        (True, False)
    """
    return (
        not is_compiling()
        and type(x) in _KINDS
        and x.layout is torch.strided
        and x.is_floating_point()
        and not (
            _is_tracing()
            or _are_functorch_transforms_active()
            or _len_torch_function_stack()
            or forward_ad._current_level >= 0
            or _is_any_autocast_enabled()
            or are_modules_watched()
            or (_len_torch_dispatch_stack() and not _all_only_answer())
        )
    )


_KINDS = (Tensor, nn.Parameter)


def are_modules_watched() -> bool:
    """Tell whether anybody looks at all modules: hooks, or ``torch.fx`` at what they are asked for.

    Example:
        >>> are_modules_watched()
        False
    """
    return bool(_has_any_global_hook()) or nn.Module.__getattr__ is not _GETATTR


_GETATTR = nn.Module.__getattr__


def _all_only_answer() -> bool:
    return all(map(_only_answers, _get_current_dispatch_mode_stack()))


def _only_answers(mode: TorchDispatchMode) -> bool:
    """Tell whether a mode lets everything be as it is, and answers what would fail."""
    return getattr(mode, "only_answers", False)


def is_dense(x: Tensor) -> bool:
    """Tell whether a map's positions are one dimension as it lies: contiguous, or channels last.

    Example:
        >>> x = torch.zeros(2, 8, 4, 4)
        >>> is_dense(x), is_dense(x.transpose(2, 3))
        (True, False)
    """
    if x.is_contiguous():
        return True
    last = _CHANNELS_LAST.get(x.dim())
    if last is None:
        return x.movedim(1, -1).is_contiguous()
    return x.is_contiguous(memory_format=last)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Tell whether calling a module does what its class says: no hooks, no forward of its own.

    Args:
        module: The module.
        kinds: The classes that it may be of; a subclass is another.

    Example:
        >>> relu = nn.ReLU()
        >>> is_untouched(relu, nn.ReLU)
        True
        >>> _ = relu.register_forward_hook(print)
        >>> is_untouched(relu, nn.ReLU)
        False
    """
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or not is_bound(module.forward, type(module).forward)
    )


def is_bound(method: Callable[..., object], function: Callable[..., object]) -> bool:
    """Tell whether a method is that function of a class: no subclass's, and not the instance's own.

    Example:
        >>> is_bound(nn.ReLU().forward, nn.ReLU.forward), is_bound(nn.ReLU().forward, torch.relu)
        (True, False)
    """
    return getattr(method, "__func__", None) is function
