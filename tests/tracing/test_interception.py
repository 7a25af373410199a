"""The base class of all modules is written on once for a plan, and for its own thread alone."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_surgery


class Block(nn.Module):
    def __init__(self, width: int, noted: Callable[[], None]):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.noted = noted

    def forward(self, x: Tensor) -> Tensor:
        self.noted()
        return x + self.norm(torch.relu(self.conv(x)))


def network(noted: Callable[[], None]) -> nn.Module:
    return nn.Sequential(*(Block(width, noted) for width in (4, 4)))


def test_all_traces_of_a_plan_share_what_is_written():
    notes: SimpleQueue[Any] = SimpleQueue()  # a list would be put back as it was
    before = nn.Module.__call__, nn.Module.__getattr__
    noted = lambda: notes.put((nn.Module.__call__, nn.Module.__getattr__))  # noqa: E731
    holder = nn.Module()  # which has no forward: its blocks are traced one by one
    holder.blocks = nn.ModuleList([Block(4, noted), Block(8, noted)])
    attn_surgery.plan(holder)
    seen = [notes.get() for _ in range(notes.qsize())]
    assert len(seen) >= 2
    assert len(set(seen)) == 1
    assert seen[0] != before
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_it_is_put_back_when_a_plan_fails():
    before = nn.Module.__call__, nn.Module.__getattr__

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        attn_surgery.plan(network(fail))
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_other_threads_run_their_modules_as_ever():
    other, results = nn.Linear(2, 2), SimpleQueue[Any]()

    def run() -> None:
        thread = Thread(target=lambda: results.put((other.weight, other(torch.ones(1, 2)))))
        thread.start()
        thread.join()

    attn_surgery.plan(network(run))
    assert not results.empty()
    while not results.empty():
        weight, result = results.get()
        assert weight is other.weight
        assert torch.equal(result, other(torch.ones(1, 2)))
