"""One thread per test process: small tensors gain nothing from more, and workers share cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none."""
    if torch.accelerator.current_accelerator(check_available=True) is not None:
        return
    skip = pytest.mark.skip(reason="no accelerator on this machine")
    for item in items:
        if item.get_closest_marker("accelerator"):
            item.add_marker(skip)
