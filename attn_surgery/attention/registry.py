"""The attention modules that there are, by name, and how one of them is built."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from attn_surgery.attention.gate import CONV, INITS, IdentityStart
from attn_surgery.attention.options import choice, whole
from attn_surgery.errors import SurgeryError, nearest

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

ENGINE_KEYWORDS = ("channels", "spatial_dims", "init")
_builders: dict[str, Builder] = {}


def register(name: str) -> Callable[[B], B]:
    """Make ``attention=name`` mean the builder below this decorator.

    A builder is called as ``builder(channels, **options)`` and returns a module that maps
    ``(N, C, *spatial)`` to ``(N, C, *spatial)``. One whose signature names ``spatial_dims`` (1, 2
    or 3) or ``init`` (``identity`` or ``paper``) gets them, and one that names ``init`` has to
    start as the identity by itself.

    Args:
        name: The name, not taken so far.

    Raises:
        SurgeryError: If the name is taken, or not a non-empty string.

    Example:
        >>> @register("doctest_nothing")
        ... def nothing(channels):
        ...     return nn.Identity()
        >>> "doctest_nothing" in available()
        True
        >>> del _builders["doctest_nothing"]
    """
    if not isinstance(name, str) or not name:
        raise SurgeryError(f"an attention's name must be a non-empty string, not {name!r}")

    def record(builder: B) -> B:
        if name in _builders:
            raise SurgeryError(f"an attention named {name!r} is registered already; choose another")
        _builders[name] = builder
        return builder

    return record


def available() -> list[str]:
    """List the registered names, sorted.

    Example:
        >>> available()
        ['cam', 'cbam', 'sam', 'se']
    """
    return sorted(_builders)


def get_builder(attention: str | Builder) -> Builder:
    """Return the builder that ``attention`` names, or ``attention`` itself if it is a callable.

    Raises:
        SurgeryError: If nothing has that name, or it is neither a name nor a builder.
    """
    names = ", ".join(repr(name) for name in available())
    if isinstance(attention, str):
        if attention in _builders:
            return _builders[attention]
        hint = nearest(attention, _builders)
        raise SurgeryError(f"unknown attention {attention!r}{hint}; available: {names}")
    # A module is callable too, but one module cannot sit at several sites.
    if isinstance(attention, nn.Module) or not callable(attention):
        raise SurgeryError(
            f"attention must be one of {names}, or a callable (channels, **options) -> nn.Module, "
            f"not an instance of {type(attention).__name__}"
        )
    return attention


def check_options(attention: str | Builder, options: Mapping[str, Any]) -> None:
    """Check that the builder accepts every option by its name; values are not looked at.

    Raises:
        SurgeryError: If it does not, or if an option is the engine's own to choose.

    Example:
        >>> check_options("se", {"reduction": 8})
        >>> check_options("sam", {"norms": True})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: attention 'sam' has no option 'norms' (it accepts ...
    """
    parameters = _parameters(get_builder(attention))
    accepted = [
        name
        for name, parameter in list(parameters.items())[1:]
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        and name not in ENGINE_KEYWORDS
    ]
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    listed = f"it accepts {', '.join(accepted) or 'no options'}"
    for option in options:
        if option in ENGINE_KEYWORDS:
            raise SurgeryError(
                f"attention {_name(attention)}: {option!r} is no option, as the surgery decides it "
                f"at every site ({listed})"
            )
        if option not in accepted and (not anything or option in list(parameters)[:1]):
            raise SurgeryError(
                f"attention {_name(attention)} has no option {option!r} ({listed})"
                f"{nearest(option, accepted)}"
            )


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
    ``IdentityStart``; ``init="paper"`` leaves what it builds as it is.

    Args:
        attention: A registered name, or a builder.
        channels: C of the maps that it will get, ``(N, C, *spatial)``.
        spatial_dims: The number of spatial dimensions of those maps: 1, 2 or 3.
        init: ``identity`` or ``paper``.
        options: The builder's own keywords.

    Raises:
        SurgeryError: If the attention is unknown, an option is refused, or the builder fails or
            returns something other than a module.

    Example:
        >>> build("se", 64, options={"reduction": 8}).fc1.out_channels
        8
    """
    options = dict(options or {})
    check_options(attention, options)
    whole("channels", channels)
    choice("spatial_dims", spatial_dims, tuple(CONV))
    choice("init", init, INITS)
    builder = get_builder(attention)
    parameters = _parameters(builder)
    ours = {"spatial_dims": spatial_dims, "init": init}
    known = {name: value for name, value in ours.items() if name in parameters}
    call = f"attention {_name(attention)} with channels={channels}, options={options}"
    try:
        module = builder(channels, **known, **options)
    # Whatever a foreign builder raises (timm asserts, torch raises RuntimeError), the user meets
    # one error.
    except Exception as error:
        raise SurgeryError(f"cannot build {call}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SurgeryError(f"{call} must be an nn.Module, but is a {type(module).__name__}")
    if init == "identity" and "init" not in known:
        return IdentityStart(module)
    return module


def _parameters(builder: Builder) -> Mapping[str, inspect.Parameter]:
    # A builder without a signature (written in C) may accept anything.
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda channels, /, **options: None).parameters


def _name(attention: str | Builder) -> str:
    if isinstance(attention, str):
        return repr(attention)
    return repr(getattr(attention, "__qualname__", type(attention).__qualname__))
