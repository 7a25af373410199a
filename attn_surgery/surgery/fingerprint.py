"""What a host is, tensor by tensor: enough to tell another one from it, without its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from attn_surgery.errors import SurgeryError

_SHOWN = 3


def form(tensor: Tensor) -> str:
    """Write dtype and shape.

    Example:
        >>> form(torch.zeros(2, 3))
        'float32 2x3'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}".strip()


def digest(tensor: Tensor) -> str:
    """Return a hash of the numbers in a tensor, wherever and however it is laid out in memory.

    Example:
        >>> digest(torch.eye(3)) == digest(torch.eye(3).T.clone())
        True
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=8).hexdigest()


def text_digest(text: str) -> str:
    """Return a hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def forms(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the form of every tensor."""
    return {key: form(tensor) for key, tensor in state.items()}


def check_same(what: str, seen: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse names or values that are not as expected, naming the first of each kind.

    Raises:
        SurgeryError: Something is missing, too much, or different.
    """
    faults = [
        _counted(sorted(expected.keys() - seen.keys()), "missing"),
        _counted(sorted(seen.keys() - expected.keys()), "too much"),
        _counted(
            [
                f"{key} ({seen[key]}, not {expected[key]})"
                for key in expected
                if key in seen and seen[key] != expected[key]
            ],
            "different",
        ),
    ]
    if found := [fault for fault in faults if fault]:
        raise SurgeryError(f"{what}: {'; '.join(found)}")


def _counted(names: Iterable[str], kind: str) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind}: {', '.join(names[:_SHOWN])}{more}"
