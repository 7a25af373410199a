"""What a forward calls that is not written in Python is called after surgery as often as before."""

from __future__ import annotations

import contextvars
import copy
import functools
import random as random_numbers
from collections import deque
from collections.abc import Callable
from datetime import datetime
from itertools import count
from operator import mul
from random import random
from typing import Any

import numpy
import pytest
import torch
from hosts import Branch
from numpy.random import rand
from torch import Tensor

import attn_surgery
from attn_surgery.host import inspect_forward

SCALE = contextvars.ContextVar("scale", default=1.0)
SETTINGS = {"scale": 1.0}
LOG: list[int] = []
QUEUE: deque[int] = deque()
scale_now, setting, note, queue = SCALE.get, SETTINGS.get, LOG.append, QUEUE.append
next_number = count().__next__
partly: Callable[[], Any] = functools.partial(SETTINGS.get, "scale")


@functools.lru_cache
def remembered() -> float:
    return SETTINGS["scale"]


class Random(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random() < 0.5 else x + self.branch(x)


class FromNumPy(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * float(rand() < 0.5)


class OfAContext(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * scale_now()


class OfSettings(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * setting("scale", 1.0)


class OfAPart(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * partly()


class Remembering(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * remembered()


class Held(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.scale_now = SCALE.get

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.scale_now()


class Counting(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * next_number()


class Logging(Branch):
    def forward(self, x: Tensor) -> Tensor:
        note(1)
        return x + self.branch(x) * len(LOG)


class Queueing(Branch):
    def forward(self, x: Tensor) -> Tensor:
        queue(1)
        return x + self.branch(x)


class OfTheTime(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * datetime.now().microsecond


class Importing(Branch):
    def forward(self, x: Tensor) -> Tensor:
        from random import random

        return x + self.branch(x) * random()


KINDS = [each for each in Branch.__subclasses__() if each.__module__ == __name__]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_seen(kind):
    said = "; ".join(inspect_forward(kind()).obstacles)
    assert any(each in said for each in ("not written in Python", "imports", "reads self.scale_"))


def outputs(host: Any, x: Tensor) -> list[Tensor]:
    random_numbers.seed(0)
    numpy.random.seed(0)
    found = [host(x) for _ in range(6)]
    token = SCALE.set(3.0)
    SETTINGS["scale"] = 3.0
    found.append(host(x))
    SCALE.reset(token)
    SETTINGS["scale"] = 1.0
    return found


@pytest.mark.parametrize("kind", [Random, FromNumPy, OfAContext, OfSettings, OfAPart, Held])
def test_it_is_called_each_time(kind):
    host, x = kind(), torch.randn(2, 8, 8, 8)
    operated = attn_surgery.apply(copy.deepcopy(host), "se")
    assert all(map(torch.equal, outputs(operated, x), outputs(host, x)))


class Pure(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, mul(self.branch(x), max(1, 2)))


def test_what_is_pure_is_no_obstacle():
    assert not inspect_forward(Pure()).obstacles
