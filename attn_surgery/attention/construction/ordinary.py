"""Which tensors and modules are what they seem, so that eager work on them may be rearranged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    if type(module) not in kinds:
        return False
    state = module.__dict__  # to look up by name takes a multiple of the time
    return not (
        "forward" in state
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or module._compiled_call_impl is not None
    )


def runs(module: nn.Module, *methods: Callable[..., object]) -> bool:
    """Tell whether methods are those of a class, and neither a subclass's nor the instance's own.

    Args:
        module: The module.
        methods: The functions, as the class has them.

    Example:
        >>> runs(nn.ReLU(), nn.ReLU.forward), runs(nn.ReLU(), nn.GELU.forward)
        (True, False)
    """
    for method in methods:
        if getattr(getattr(module, method.__name__), "__func__", None) is not method:
            return False
    return True


def children(module: nn.Module, *names: str) -> list[Any]:
    """Return children by name, by a bare look-up where the module has no answer of its own.

    Args:
        module: The module.
        names: What it has them as.

    Example:
        >>> children(nn.Sequential(nn.ReLU(), nn.GELU()), "1", "0")
        [GELU(approximate='none'), ReLU()]
    """
    kind, state, own = type(module), module.__dict__, module._modules
    if kind.__getattr__ is _GETATTR:
        for name in names:
            if name in state or name not in own or hasattr(kind, name):
                break
        else:
            return [own[name] for name in names]
    return [getattr(module, name) for name in names]


def untouched_parameters(
    layer: nn.Module, *kinds: type[nn.Module]
) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias of a layer that is untouched, where both are the layer's own.

    Not so of what is computed, or set as a tensor. To ask the layer takes ten times as long.

    Args:
        layer: The layer.
        kinds: As for ``is_untouched``.

    Example:
        >>> weight, bias = untouched_parameters(nn.Linear(4, 2, bias=False), nn.Linear)
        >>> weight.shape, bias
        (torch.Size([2, 4]), None)
    """
    if not is_untouched(layer, *kinds):
        return None
    own, state = layer._parameters, layer.__dict__
    if "weight" in state or "bias" in state or not ("weight" in own and "bias" in own):
        return None
    weight = own["weight"]
    return None if weight is None else (weight, own["bias"])
