"""Checks of option values: each returns the value, or says what would have been accepted."""

import math
from collections.abc import Collection
from typing import Any

from attn_surgery.errors import SurgeryError, nearest


def whole(name: str, value: Any, *, odd: bool = False) -> int:
    """Return ``value`` if it is a positive (and, if asked, odd) ``int``; a ``bool`` is none.

    Raises:
        SurgeryError: If it is anything else.

    Example:
        >>> whole("kernel_size", 4, odd=True)
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: kernel_size=4: must be an odd whole number, 1 or more
    """
    positive = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if positive and (value % 2 or not odd):
        return value
    kind = "an odd" if odd else "a"
    raise SurgeryError(f"{name}={value!r}: must be {kind} whole number, 1 or more")


def positive(name: str, value: Any) -> float:
    """Return ``value`` if it is a positive, finite number; a ``bool`` is none.

    Raises:
        SurgeryError: If it is anything else.

    Example:
        >>> positive("epsilon", 0)
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: epsilon=0: must be a positive number
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise SurgeryError(f"{name}={value!r}: must be a positive number")


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is a ``bool``.

    Raises:
        SurgeryError: If it is anything else, the string ``"false"`` included.
    """
    if isinstance(value, bool):
        return value
    raise SurgeryError(f"{name}={value!r}: must be True or False")


def choice(name: str, value: Any, accepted: Collection[Any]) -> Any:
    """Return ``value`` if it is one of ``accepted``.

    Raises:
        SurgeryError: If it is not; the message lists what is, and suggests the nearest word.

    Example:
        >>> choice("pool", "sum", ("avg", "max"))
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: pool='sum': must be one of 'avg', 'max'
    """
    # By type too: True == 1 and 2.0 == 2, but neither is a number of spatial dimensions.
    if any(type(value) is type(known) and value == known for known in accepted):
        return value
    listed = ", ".join(repr(known) for known in accepted)
    hint = nearest(value, [k for k in accepted if isinstance(k, str)])
    raise SurgeryError(f"{name}={value!r}: must be one of {listed}{hint}")
