"""Which version of a package is installed, this one among them."""

from __future__ import annotations

import importlib.metadata


def installed(package: str) -> str:
    """Return the version of a package by its name for pip, or "not installed".

    Example:
        >>> installed("torch-of-mars")
        'not installed'
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


__version__ = installed("attn-surgery")
