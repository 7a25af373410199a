"""Matplotlib's figures, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

from attn_surgery.errors import SurgeryError


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return a figure of so many inches.

    It is one of its own, without pyplot: no display is needed, and no global state changed.

    Raises:
        SurgeryError: Matplotlib is not installed.
    """
    figures: Any = imported("matplotlib.figure")
    return figures.Figure(figsize=(width, height), **options)


def imported(name: str) -> Any:
    """Return a module that pictures need.

    Raises:
        SurgeryError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SurgeryError(
            f"a picture needs {name.partition('.')[0]}: pip install 'attn-surgery[plot]'"
        ) from error
