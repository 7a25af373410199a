"""The one error that users of the package meet."""

import difflib
from collections.abc import Iterable, Sequence


class SurgeryError(ValueError):
    """Something that cannot be done as asked: what, where, what was seen, what to do.

    A surgery that raises this, be it `plan`, `apply` or `load`, leaves the host as it was. From
    `attn_surgery.finetune` it may come in the middle of a training, in which the model has moved.

    Example:
        >>> raise SurgeryError("unknown attention 'cbma'; did you mean 'cbam'?")
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: unknown attention 'cbma'; did you mean 'cbam'?
    """


EXHAUSTED = (MemoryError, RecursionError)
"""Out of memory, or of stack: nothing that could be said of the code which ran into it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the known word closest to ``name``, else ``""``.

    Example:
        >>> nearest("cbma", ["se", "cbam"])
        "; did you mean 'cbam'?"
        >>> nearest("transformer", ["se", "cbam"])
        ''
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(name: str, value: object, accepted: Sequence[str]) -> None:
    """Refuse an argument that is none of the accepted words.

    Raises:
        SurgeryError: It is none of them.
    """
    if value not in accepted:
        raise SurgeryError(
            f"{name}={value!r} is not supported{nearest(str(value), accepted)}; "
            f"accepted: {', '.join(map(repr, accepted))}"
        )


def one_line(error: BaseException, limit: int = 240) -> str:
    """Return an exception as one line of at most ``limit`` characters.

    Example:
        >>> one_line(RuntimeError("no\\n  luck"))
        'RuntimeError: no luck'
    """
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """TEMPORARY"""
    return type(error).__name__ in (
        "OutOfMemoryError",
        "MemoryError",
    ) or "DefaultCPUAllocator" in str(error)
