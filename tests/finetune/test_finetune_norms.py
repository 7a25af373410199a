"""Batch norms of several processes are together what one is alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.modules._functions import SyncBatchNorm
from torch.utils.checkpoint import checkpoint

import attn_surgery
from attn_surgery.attention import CBAM
from attn_surgery.finetune import freeze_norm_statistics
from attn_surgery.finetune.process import synchronized_norms
from tests import hosts

TWO: Any = SimpleNamespace(num_processes=2)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (8, 4, 5, 3)
    first: int = 5
    dtype: torch.dtype = torch.float32

    def module(self) -> nn.Module:
        torch.manual_seed(1)
        made = self.make().to(torch.promote_types(self.dtype, torch.float32)).train()
        for parameter in made.parameters():
            nn.init.normal_(parameter)
        return made

    def drawn(self, seed: int) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, generator=chance).mul(2).add(3).to(self.dtype)

    def rows(self, rank: int) -> slice:
        return slice(None, self.first) if rank == 0 else slice(self.first, None)


class Recomputed(nn.Module):
    """Forget what is within, and compute it again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=0.0), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # pyright: ignore[reportReturnType]


def frozen() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(4))
    freeze_norm_statistics(model)
    return model


def operated(kind: type[nn.Module]) -> nn.Module:
    return attn_surgery.apply(kind(), "cbam")


CASES = {
    "2d": Case(lambda: nn.BatchNorm2d(4)),
    "1d": Case(lambda: nn.BatchNorm1d(4), (8, 4)),
    "3d": Case(lambda: nn.BatchNorm3d(4), (8, 4, 2, 3, 2)),
    "equal": Case(lambda: nn.BatchNorm2d(4), first=4),
    "nothing here": Case(lambda: nn.BatchNorm2d(4), first=0),
    "one value each": Case(lambda: nn.BatchNorm2d(4), (2, 4, 1, 1), first=1),
    "double": Case(lambda: nn.BatchNorm2d(4), dtype=torch.float64),
    "bfloat16": Case(lambda: nn.BatchNorm2d(4), dtype=torch.bfloat16),
    "momentum": Case(lambda: nn.BatchNorm2d(4, eps=0.1, momentum=0.7)),
    "average": Case(lambda: nn.BatchNorm2d(4, momentum=None)),
    "no weights": Case(lambda: nn.BatchNorm2d(4, affine=False)),
    "no statistics": Case(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "evaluating": Case(lambda: nn.Sequential(nn.BatchNorm2d(4).eval())),
    "frozen": Case(frozen),
    "timm": Case(lambda: BatchNormAct2d(4)),
    "recomputed": Case(Recomputed),
    "cbam": Case(lambda: CBAM(4)),
    "rewritten": Case(lambda: operated(hosts.Block), (8, 8, 6, 6), dtype=torch.float64),
    "attached": Case(lambda: operated(hosts.Flag), (8, 8, 6, 6), dtype=torch.float64),
}


CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Seen:
    out: Tensor
    x_grad: Tensor
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]


def seen(case: Case, rows: slice) -> Seen:
    """Go forward twice, on other batches, and back."""
    module = case.module()
    module(case.drawn(2)[rows])
    x = case.drawn(3)[rows].clone().requires_grad_()
    out = module(x)
    (out * case.drawn(4)[rows]).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return Seen(out.detach(), x.grad, grads, dict(module.named_buffers()))


def work(rank: int, folder: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    with synchronized_norms(TWO):
        found = {name: vars(seen(case, case.rows(rank))) for name, case in CASES.items()}
        told = refused()
    torch.save({**found, "single": told, "calls": calls_on_an_accelerator()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def refused() -> str:
    """Give one value to both processes together."""
    x = torch.ones(1, 4, 1, 1)[dist.get_rank() :]
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        nn.BatchNorm2d(4)(x)
    return str(caught.value)


class OnGPU(Tensor):
    """Say so, at least."""

    device = torch.device("cuda")  # pyright: ignore[reportAssignmentType]


def calls_on_an_accelerator() -> list[Any]:
    """Return what torch's own function is given, by torch's own module and by ours."""
    calls: list[Any] = []
    x = torch.ones(2, 4, 1, 1).as_subclass(OnGPU)
    ways = ((nn.SyncBatchNorm, contextlib.nullcontext()), (nn.BatchNorm2d, synchronized_norms(TWO)))
    with pytest.MonkeyPatch.context() as patch, torch._C.DisableTorchFunctionSubclass():
        patch.setattr(SyncBatchNorm, "apply", lambda *given: calls.append([*map(plain, given)]))
        for norm, context in ways:
            with context:
                norm(4, eps=0.1, momentum=0.2)(x)
    return calls


def plain(given: Any) -> Any:
    if given is dist.group.WORLD:
        return "world"
    return given.tolist() if isinstance(given, Tensor) else given


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("processes")
    spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(both, name):
    case = CASES[name]
    one, (first, second) = seen(case, slice(None)), (Seen(**each[name]) for each in both)
    near = dict.fromkeys(("rtol", "atol"), CLOSE[case.dtype])
    for key in ("out", "x_grad"):
        together = torch.cat([getattr(first, key), getattr(second, key)])
        torch.testing.assert_close(together, getattr(one, key), **near)
    summed = {key: first.grads[key] + second.grads[key] for key in first.grads}
    torch.testing.assert_close(summed, one.grads, **near)
    for part in (first, second):
        torch.testing.assert_close(part.buffers, one.buffers, **near)


def test_one_value_in_all_is_refused(both):
    assert "of all processes" in both[0]["single"]


def test_on_an_accelerator_it_is_what_torch_does(both):
    theirs, ours = both[0]["calls"]
    assert ours == theirs
    assert theirs[-4:] == [0.1, 0.2, "world", 2]


def test_one_process_has_torchs_own():
    own = F.batch_norm
    with synchronized_norms(SimpleNamespace(num_processes=1)):
        assert F.batch_norm is own


def test_torchs_own_comes_back():
    own = F.batch_norm
    with contextlib.suppress(KeyError), synchronized_norms(TWO):
        assert F.batch_norm is not own
        raise KeyError
    assert F.batch_norm is own
