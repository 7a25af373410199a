"""One attention module from its name or builder, checked, with the start that was asked for."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from attn_surgery.attention.construction.batch_dims import take_any_batch
from attn_surgery.attention.construction.gate import CONV, INITS
from attn_surgery.attention.construction.identity_start import (
    IdentityStart,
    check_forward,
    keeps_layout,
    starts_as_identity,
    takes_any_batch,
)
from attn_surgery.attention.construction.options import choice, whole
from attn_surgery.attention.construction.registry import (
    Builder,
    check_options,
    entry,
    get_builder,
    name_of,
    parameters_of,
)
from attn_surgery.errors import SurgeryError, is_exhausted


def build(
    attention: str | Builder,
    channels: int,
    *,
    spatial_dims: int = 2,
    init: str = "identity",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build one attention module.

    A builder that does not know ``init`` gets its identity start from outside, by
    ``IdentityStart``, unless what it builds starts as the identity by itself and keeps the memory
    layout of its map; ``init="paper"`` leaves what it builds as it is. What such a builder returns
    is run on small maps; where it fails on a batch of none, or on a map that is no batch, it is
    made to take them.

    Args:
        attention: A registered name, or a builder.
        channels: C of the maps that it will get, ``(N, C, *spatial)``.
        spatial_dims: The number of spatial dimensions of those maps: 1, 2 or 3.
        init: ``identity`` or ``paper``.
        options: The builder's own keywords.

    Raises:
        SurgeryError: If the attention is unknown, an option is refused, the builder fails, or
            what it returns is no module from maps to maps of the same shape.

    Example:
        >>> build("se", 64, options={"reduction": 8}).fc1.out_channels
        8
    """
    options = dict(options or {})
    check_options(attention, options)
    whole("channels", channels)
    choice("spatial_dims", spatial_dims, tuple(CONV))
    choice("init", init, INITS)
    _check_dims(attention, spatial_dims)
    accepted = parameters_of(get_builder(attention))
    ours = {"spatial_dims": spatial_dims, "init": init}
    ours = {name: value for name, value in ours.items() if name in accepted and name not in options}
    module = _built(attention, channels, ours, options)
    if "init" in accepted:
        return module
    tried = module
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        with torch.device("cpu"):
            tried = _built(attention, channels, ours, options)
    try:
        check_forward(tried, channels, spatial_dims)
    except SurgeryError as error:
        raise SurgeryError(f"{_call(attention, channels, options)} {error}") from error
    if not takes_any_batch(tried, channels, spatial_dims):
        take_any_batch(module, spatial_dims)
    if init == "paper":
        return module
    return _identity_start(module, tried, channels, spatial_dims)


def _identity_start(
    module: nn.Module, tried: nn.Module, channels: int, spatial_dims: int
) -> nn.Module:
    """Wrap a module unless it needs no wrapper; ``tried`` is the module, or its like on the CPU."""
    if not starts_as_identity(tried, channels, spatial_dims):
        return IdentityStart(module)
    if keeps_layout(tried, channels, spatial_dims):
        return module
    return IdentityStart(module, alpha=1.0)


def _check_dims(attention: str | Builder, spatial_dims: int) -> None:
    dims = entry(attention).dims if isinstance(attention, str) else None
    if dims is not None and spatial_dims not in dims:
        listed = " and ".join(f"{number}-D" for number in dims)
        raise SurgeryError(
            f"attention {name_of(attention)} works on {listed} maps, not on {spatial_dims}-D ones"
        )


def _built(
    attention: str | Builder, channels: int, ours: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    call = _call(attention, channels, options)
    try:
        module = get_builder(attention)(channels, **ours, **options)
    # Whatever a foreign builder raises (timm asserts, torch raises RuntimeError), the user meets
    # one error.
    except Exception as error:
        if is_exhausted(error):
            raise
        raise SurgeryError(f"cannot build {call}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SurgeryError(f"{call} must be an nn.Module, not {type(module).__name__}")
    return module


def _call(attention: str | Builder, channels: int, options: dict[str, Any]) -> str:
    named = f"attention {name_of(attention)}{_origin(attention)}"
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"{named} with channels={channels}{given}"


def _origin(attention: str | Builder) -> str:
    """Say whose a registered builder is, where it is another package's."""
    builder = get_builder(attention)
    if isinstance(builder, functools.partial):
        builder = builder.func
    module = getattr(builder, "__module__", None) or ""
    if not isinstance(attention, str) or module.partition(".")[0] in {"attn_surgery", ""}:
        return ""
    return f" ({module}.{getattr(builder, '__qualname__', type(builder).__qualname__)})"
