"""Packages that only fine-tuning needs."""

from __future__ import annotations

import importlib
from typing import Any

from attn_surgery.errors import SurgeryError


def need(module: str, package: str = "", extra: str = "finetune") -> Any:
    """Import a module, or say what to install.

    Args:
        module: The module.
        package: The package that has it, where that is called otherwise.
        extra: The extra of attn-surgery that has the package.

    Raises:
        SurgeryError: It is not installed.

    Example:
        >>> need("torch_of_mars")
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: torch_of_mars is not installed: pip install \
'attn-surgery[finetune]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name != top:
            raise
        raise SurgeryError(
            f"{package or top} is not installed: pip install 'attn-surgery[{extra}]'"
        ) from error
