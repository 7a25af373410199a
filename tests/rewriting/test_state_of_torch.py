"""What a forward asks torch of its own state is asked after surgery, too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hosts import Branch
from torch import Tensor
from torch.backends import cudnn
from torch.distributed import is_initialized
from torch.fx._symbolic_trace import is_fx_tracing
from torch.nn import functional

import attn_surgery
from attn_surgery.host import inspect_forward


class OfAGroup(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if dist.is_initialized() else 1.0)


class OfAGroupByName(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if is_initialized() else 1.0)


class OfAFlag(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if torch.backends.cudnn.deterministic else 1.0)


class OfAFlagByName(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if cudnn.deterministic else 1.0)


class OfAFlagByAnotherName(Branch):
    def forward(self, x: Tensor) -> Tensor:
        flags = torch.backends.cudnn
        return x + self.branch(x) * (0.5 if flags.deterministic else 1.0)


class OfAFlagOfAFlag(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if torch.backends.cuda.matmul.allow_tf32 else 1.0)


class OfTheThreads(Branch):
    def forward(self, x: Tensor) -> Tensor:
        threads = [torch.get_num_interop_threads() for _ in "a"]
        return x + self.branch(x) * (0.5 if threads[0] < 0 else 1.0)


class OfATrace(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if is_fx_tracing() else 1.0)


KINDS = [each for each in Branch.__subclasses__() if each.__module__ == __name__]


@contextmanager
def another_state() -> Iterator[None]:
    flags: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    before = flags.deterministic, products.allow_tf32
    flags.deterministic = products.allow_tf32 = True
    try:
        with patch.object(dist, "is_initialized", lambda: True):
            yield
    finally:
        flags.deterministic, products.allow_tf32 = before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:is_fx_tracing")
def test_it_is_asked_each_time(kind):
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    operated = attn_surgery.apply(copy.deepcopy(host), "se")
    assert torch.equal(operated(x), host(x))
    with another_state():
        assert torch.equal(operated(x), host(x))
    assert any("which a trace does not show" in each for each in inspect_forward(host).obstacles)


class Pure(Branch):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 4, "a map")
        y = functional.gelu(self.branch(x)).to(torch.float32, memory_format=torch.channels_last)
        if not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            y = torch.nn.functional.pad(torch.cat([y, y], 1)[:, :8], (0, 0)) * torch.pi
        return torch.add(x, torch.special.expm1(y) + torch.linalg.norm(y))


def test_what_is_pure_is_no_obstacle():
    assert not inspect_forward(Pure()).obstacles
