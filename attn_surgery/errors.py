"""The one error that users of the package meet."""

import difflib
from collections.abc import Iterable


class SurgeryError(ValueError):
    """A surgery that cannot be done: what, where, what was seen, what to do.

    The host is untouched whenever this is raised.

    Example:
        >>> raise SurgeryError("unknown attention 'cbma'; did you mean 'cbam'?")
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: unknown attention 'cbma'; did you mean 'cbam'?
    """


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
