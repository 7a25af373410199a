"""Hosts that cannot be operated on, each refused with what to do instead."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from attn_surgery.errors import SurgeryError


def check_module(model: object) -> None:
    """Refuse what is no module.

    Raises:
        SurgeryError: It is none.
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(
            f"the host must be a torch.nn.Module, not {_kind_of(model)}; "
            "pass the model itself, not its class, its path or its state dict"
        )


def check_host(model: nn.Module) -> None:
    """Refuse what cannot be operated on.

    Raises:
        SurgeryError: ``model`` is no module, is scripted, compiled, wrapped for data-parallel
            training or converted to int8, or has parameters that are not initialised yet.
    """
    check_module(model)
    unfit = functools.cache(_unfit)
    for path, module in model.named_modules():
        found = _COMPILED if _is_compiled(module) else unfit(type(module))
        if found and (module is model or found is not _SCRIPTED):
            what, remedy = found
            raise SurgeryError(f"{_place(path, module)} is {what}: {remedy}")
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                raise SurgeryError(
                    f"{path + '.' * bool(path) + name!r} is not initialised yet (a lazy module): "
                    "run one forward pass first"
                )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the host that DDP or ``torch.compile``, in which no surgery is done, hold as it is.

    ``nn.DataParallel``, which can be operated on as any other module, stays.

    Example:
        >>> host = nn.Linear(1, 1)
        >>> unwrapped(torch.compile(host)) is host
        True
    """
    while isinstance(model, DistributedDataParallel) or _is_of_dynamo(model):
        (model,) = model.children()
    return model


def _kind_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _place(path: str, module: nn.Module) -> str:
    return f"{path!r} ({type(module).__name__})" if path else f"the host ({type(module).__name__})"


def _is_of_dynamo(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo")


def _is_compiled(module: nn.Module) -> bool:
    return _is_of_dynamo(module) or vars(module).get("_compiled_call_impl") is not None


def _unfit(cls: type[nn.Module]) -> tuple[str, str] | None:
    """Return what modules of this class are, and what to do instead, where they are no hosts."""
    if issubclass(cls, torch.jit.ScriptModule):
        return _SCRIPTED
    if any(
        each.__name__ in _SHARDS and each.__module__.startswith("torch.") for each in cls.__mro__
    ):
        return _SHARDED
    home, name = cls.__module__, cls.__name__
    is_int8 = ".quantized" in home and home.startswith("torch.ao.nn.")
    return _QUANTIZED if is_int8 and not name.endswith("FloatFunctional") else None


_SHARDS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
_SCRIPTED = ("a ScriptModule", "operate on the Python module, then call torch.jit.script")
_COMPILED = ("compiled", "operate on the module before torch.compile, then compile it")
_SHARDED = ("wrapped in DDP or FSDP", "operate before wrapping, in every process alike")
_QUANTIZED = ("converted to int8", "operate on the float model, then prepare and convert it")
