"""The attention modules that there are, by name, and the options that each accepts."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from attn_surgery.errors import SurgeryError, nearest

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

ENGINE_KEYWORDS = ("channels", "spatial_dims", "init")


@dataclass(frozen=True)
class Entry:
    """What is known of a registered attention.

    Attributes:
        builder: Called as ``builder(channels, **options)``.
        paper: The publication, as ``Hu et al. 2018, arXiv:1709.01507``; "" where none was given.
        dims: The numbers of spatial dimensions of the maps that it takes; None: not known.
    """

    builder: Builder
    paper: str = ""
    dims: tuple[int, ...] | None = None


_entries: dict[str, Entry] = {}


def register(
    name: str, *, paper: str = "", dims: tuple[int, ...] | None = None
) -> Callable[[B], B]:
    """Make ``attention=name`` mean the builder below this decorator.

    A builder is called as ``builder(channels, **options)`` and returns a module that maps
    ``(N, C, *spatial)`` to ``(N, C, *spatial)``. One whose signature names ``spatial_dims`` (1, 2
    or 3) or ``init`` (``identity`` or ``paper``) gets them, and one that names ``init`` has to
    start as the identity by itself. The others get their identity start from outside, and where
    trying shows that they fail on an empty batch or on ``(C, *spatial)``, they are made to take it.

    Args:
        name: The name, not taken so far.
        paper: The publication, for ``attn-surgery list``.
        dims: The numbers of spatial dimensions that it works in, where they are known: on others
            it is refused.

    Raises:
        SurgeryError: If the name is taken, or not a non-empty string.

    Example:
        >>> @register("doctest_nothing")
        ... def nothing(channels):
        ...     return nn.Identity()
        >>> "doctest_nothing" in available()
        True
        >>> del _entries["doctest_nothing"]
    """
    if not isinstance(name, str) or not name:
        raise SurgeryError(f"an attention's name must be a non-empty string, not {name!r}")

    def record(builder: B) -> B:
        if name in _entries:
            raise SurgeryError(f"an attention named {name!r} is registered already; choose another")
        _entries[name] = Entry(builder, paper, dims)
        return builder

    return record


def available() -> list[str]:
    """List the registered names, sorted.

    Example:
        >>> {"bam", "cam", "cbam", "eca", "gct", "sam", "se"} <= set(available())
        True
    """
    return sorted(_entries)


def entry(name: str) -> Entry:
    """Return what was registered under ``name``.

    Raises:
        SurgeryError: Nothing was.

    Example:
        >>> entry("se").paper
        'Hu et al. 2018, arXiv:1709.01507'
    """
    if name in _entries:
        return _entries[name]
    names = ", ".join(repr(known) for known in available())
    hint = nearest(name, _entries)
    raise SurgeryError(f"unknown attention {name!r}{hint}; available: {names}")


def get_builder(attention: str | Builder) -> Builder:
    """Return the builder that ``attention`` names, or ``attention`` itself if it is a callable.

    Raises:
        SurgeryError: If nothing has that name, or it is neither a name nor a builder.
    """
    if isinstance(attention, str):
        return entry(attention).builder
    # Every nn.Module is callable, but one instance can not sit at several sites.
    if isinstance(attention, nn.Module) or not callable(attention):
        names = ", ".join(repr(known) for known in available())
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
    parameters = parameters_of(get_builder(attention))
    accepted = [
        name
        for name, parameter in list(parameters.items())[1:]
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        and name not in ENGINE_KEYWORDS
    ]
    # What a builder takes as **_ it drops.
    anything = any(
        parameter.kind is parameter.VAR_KEYWORD and not name.startswith("_")
        for name, parameter in parameters.items()
    )
    listed = f"it accepts {', '.join(accepted) or 'no options'}"
    for option in options:
        if option in ENGINE_KEYWORDS:
            raise SurgeryError(
                f"attention {name_of(attention)}: {option!r} is no option, as the surgery decides "
                f"it at every site ({listed})"
            )
        if option not in accepted and (not anything or option in list(parameters)[:1]):
            raise SurgeryError(
                f"attention {name_of(attention)} has no option {option!r} ({listed})"
                f"{nearest(option, accepted)}"
            )


def parameters_of(builder: Builder) -> Mapping[str, inspect.Parameter]:
    """Return what a builder accepts, by name."""
    # A builder without a signature (written in C) may accept anything.
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda channels, /, **options: None).parameters


def name_of(attention: str | Builder) -> str:
    """Return the attention's name as messages write it."""
    if isinstance(attention, str):
        return repr(attention)
    return repr(getattr(attention, "__qualname__", type(attention).__qualname__))
