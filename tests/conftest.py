"""Which tests run by default: a sample of the large grids, and what an accelerator needs, with one.

One thread per test process: small tensors gain nothing from more, and workers share cores.
"""

from __future__ import annotations

import contextlib
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch

from attn_surgery import SurgeryError

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most of each sampled grid to ``slow``; skip what needs an accelerator without one."""
    grids: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for grid in grids.values():
        _leave_to_slow(grid)
    if torch.accelerator.current_accelerator(check_available=True) is not None:
        return
    skip = pytest.mark.skip(reason="no accelerator on this machine")
    for item in items:
        if item.get_closest_marker("accelerator"):
            item.add_marker(skip)


def _leave_to_slow(grid: list[pytest.Item]) -> None:
    """Mark all but one in so many of a test's cases as slow, always the same, mixed well."""
    mark = grid[0].get_closest_marker("sampled")
    assert mark is not None
    mixed = sorted(grid, key=lambda item: zlib.crc32(item.nodeid.encode()))
    kept = -(-len(grid) // mark.args[0])
    for item in mixed[kept:]:
        item.add_marker(pytest.mark.slow)


TOO_OLD = "Python before 3.11 does not tell where in a line something is"


@contextlib.contextmanager
def _skipping_what_python_is_too_old_for() -> Iterator[None]:
    """Skip a test of a host in which attention can be wrapped around an expression alone."""
    try:
        yield
    except SurgeryError as error:
        if sys.version_info < (3, 11) and TOO_OLD in str(error):
            pytest.skip(TOO_OLD)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _skipping_what_python_is_too_old_for():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _skipping_what_python_is_too_old_for():
        yield
