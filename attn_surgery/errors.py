"""The one error that users of the package meet."""

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence


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


# Out of memory, or of stack


def is_exhausted(error: BaseException) -> bool:
    """Tell whether memory or stack ran out, which says nothing of the code that ran into it.

    Example:
        >>> is_exhausted(RecursionError()), is_exhausted(ValueError())
        (True, False)
    """
    return isinstance(error, RecursionError) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, or one that led to it, says that the memory of a device ran out.

    PyTorch has a class for it, but its CPU allocator, CUDA itself, cuBLAS, cuDNN, MPS and
    ``torch.compile`` say it in the text of a `RuntimeError`. That cuDNN was "unable to find an
    engine" may mean it, or a GPU that is too old, and is not taken for it.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
        True
        >>> is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
        False
    """
    return any(map(_says_out_of_memory, _leading_to(error)))


def _says_out_of_memory(error: BaseException) -> bool:
    classes = {each.__name__ for each in type(error).__mro__}
    if classes & {"MemoryError", "OutOfMemoryError"}:
        return True
    if "AcceleratorError" in classes and getattr(error, "error_code", None) == _NO_MEMORY_LEFT:
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_OUT_OF_MEMORY.search(str(error)))


_NO_MEMORY_LEFT = 2  # cudaErrorMemoryAllocation, hipErrorOutOfMemory
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]((device|host)[ _])?memory|alloc(ation)?_?failed|not enough memory"
    r"|cannot allocate memory|defaultcpuallocator|memoryerror|invalid buffer size: .*B\b",
    re.IGNORECASE,
)


def _leading_to(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and, back from it, those that were being handled when it was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        is_chosen = error.__cause__ is not None or error.__suppress_context__
        error = error.__cause__ if is_chosen else _caught_within(error)


def _caught_within(error: BaseException) -> BaseException | None:
    """Return the context of an exception, unless it had been caught before the code was called."""
    context = error.__context__
    if context is None or context.__traceback__ is None:
        return context
    passed = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return context if context.__traceback__.tb_frame in passed else None


# Words


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
