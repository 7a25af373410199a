"""Classes that are made without the host's knowing: its registries list what it defines itself."""

from __future__ import annotations

from typing import Any

from torch import nn

_NOT_THE_HOSTS = frozenset("builtins abc enum typing typing_extensions torch".split())


class _Silent:
    """Stands before the host's classes while a class is made, and hears of it in their stead."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


def unannounced_class(
    name: str, bases: tuple[type[nn.Module], ...], body: dict[str, Any]
) -> type[nn.Module]:
    """Make a class of which no ``__init_subclass__`` and no metaclass of the host's is told.

    Args:
        name: Its name.
        bases: What it derives from.
        body: Its attributes.

    Example:
        >>> class Named(nn.Module):
        ...     def __init_subclass__(cls, *, name):
        ...         print(name)
        >>> unannounced_class("Other", (Named,), {}).__bases__ == (Named,)
        True
    """
    meta = type(bases[0])
    maker: Any = next(each for each in meta.__mro__ if _is_known(each))
    made = maker.__new__(meta, name, (_Silent, *bases), dict(body))
    made.__bases__ = bases
    return made


def _is_known(meta: type) -> bool:
    return meta.__module__.partition(".")[0] in _NOT_THE_HOSTS
