"""What goes on for long, its threads and its workers: nothing grows, nothing is mixed up."""

from __future__ import annotations

import copy
import gc
import linecache
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import attn_surgery

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = {
    "rewrite": hosts.Block,
    "modes": hosts.Modes,
    "attach": hosts.Flag,
    "wrap": hosts.FlagAtFunction,
    "watched": hosts.Attributes,
    "own": hosts.patched,
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def host(kind: str = "rewrite") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hosts.Network(KINDS[kind]).eval()


def operated(kind: str = "rewrite", attention: str = "cbam") -> nn.Module:
    """Return a host in which the attention does something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = attn_surgery.apply(host(kind), attention)
        for each in attn_surgery.inserted(model).values():
            for parameter in each.parameters():
                nn.init.normal_(parameter, std=0.5)
    return model


# Nothing grows


def apply_and_remove(model: nn.Module, folder: Path) -> None:
    attn_surgery.apply(model, "cbam")(X)
    attn_surgery.remove(model)


def apply_and_remove_in_another(model: nn.Module, folder: Path) -> None:
    attn_surgery.remove(attn_surgery.apply(host("modes"), "se"))


def save_and_load(model: nn.Module, folder: Path) -> None:
    attn_surgery.save(attn_surgery.apply(model, "se"), folder / "new.safetensors")
    attn_surgery.remove(model)
    attn_surgery.load(model, folder / "new.safetensors")(X)
    attn_surgery.remove(model)


def switch(model: nn.Module, folder: Path) -> None:
    attn_surgery.load(model, folder / "se.safetensors")
    attn_surgery.switch(model, folder / "cbam.safetensors")
    attn_surgery.switch(model, folder / "se.safetensors")(X)
    attn_surgery.remove(model)


def deepcopy(model: nn.Module, folder: Path) -> None:
    copied = copy.deepcopy(attn_surgery.apply(model, "cbam"))
    copied(X)
    attn_surgery.remove(copied)
    attn_surgery.remove(model)


def refused(model: nn.Module, folder: Path) -> None:
    with pytest.raises(attn_surgery.SurgeryError):
        attn_surgery.apply(model, "cbam", where="nowhere")


DONE = [apply_and_remove, apply_and_remove_in_another, save_and_load, switch, deepcopy, refused]
GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_")]


def held() -> dict[str, int]:
    """Return what must not grow."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return {
        "classes": sum(issubclass(each, type) for each in kinds),
        "sources": len(linecache.cache),
        "modules": len(sys.modules),
        "hooks": sum(len(getattr(torch_module, name) or ()) for name in GLOBAL_HOOKS),
        "threads": threading.active_count(),
        "tensors": sum(issubclass(each, Tensor) for each in kinds),
    }


def grown(do: Callable[[nn.Module, Path], None], folder: Path, rounds: int) -> dict[str, int]:
    """Return what there is more of after so many rounds, bytes of memory among it."""
    for attention in ("se", "cbam"):
        attn_surgery.save(operated(attention=attention), folder / f"{attention}.safetensors")
    model = host()
    for _ in range(5):  # what is made once is there afterwards
        do(model, folder)
    before, objects, memory = held(), len(gc.get_objects()), psutil.Process().memory_info().rss
    for _ in range(rounds):
        do(model, folder)
    after = held()
    more = {name: number - before[name] for name, number in after.items()}
    more["objects a round"] = max(0, len(gc.get_objects()) - objects) // rounds
    more["MB"] = max(0, psutil.Process().memory_info().rss - memory) // 10**6
    return more


@pytest.mark.parametrize("do", DONE)
def test_nothing_grows(do: Callable[[nn.Module, Path], None], tmp_path: Path) -> None:
    more = grown(do, tmp_path, 8)
    del more["MB"]  # of a few rounds it says nothing
    assert not any(more.values()), more


@pytest.mark.slow
@pytest.mark.parametrize("do", DONE)
def test_nothing_grows_in_a_thousand_rounds(
    do: Callable[[nn.Module, Path], None], tmp_path: Path
) -> None:
    more = grown(do, tmp_path, 1000)
    assert more.pop("MB") < 20
    assert not any(more.values()), more


def test_what_must_not_grow_is_seen(tmp_path: Path) -> None:
    kept: list[Any] = []

    def leaks(model: nn.Module, folder: Path) -> None:
        kept.append(attn_surgery.apply(host(), "cbam"))

    more = grown(leaks, tmp_path, 4)
    assert more["tensors"] > 0
    assert more["objects a round"] > 0


# Threads


@pytest.mark.parametrize("kind", KINDS)
def test_threads_run_one_model(kind: str) -> None:
    model = operated(kind)
    inputs = [torch.randn(2, 3, 8, 8) for _ in range(40)]
    with torch.no_grad():
        expected = [model(each) for each in inputs]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, inputs))
    assert all(map(torch.equal, found, expected))


def test_threads_operate_on_models_of_their_own() -> None:
    kinds = [*KINDS] * 3
    models = [host(kind) for kind in kinds]
    expected = [each(X) for each in models]
    keys = [list(operated(kind).state_dict()) for kind in kinds]

    def operate(model: nn.Module) -> tuple[Tensor, list[str]]:
        attn_surgery.apply(model, "cbam")
        return model(X), list(model.state_dict())

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(operate, models))
        restored = list(pool.map(attn_surgery.remove, models))
    assert all(map(torch.equal, (out for out, _ in found), expected))
    assert [names for _, names in found] == keys
    assert all(map(torch.equal, (each(X) for each in restored), expected))


class Making(nn.Module):
    """Calls what is patched while another model is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        out = torch.zeros(n, c, h, w)
        out[:, :, 1:] = self.conv(x)[:, :, 1:]
        out = out + torch.ones_like(x) * torch.arange(w) + torch.full((h, w), 2.0)
        return torch.cat([out, torch.empty(n, c, h, w).fill_(1)], 1).relu()


def test_a_model_runs_while_another_is_planned() -> None:
    model, other, is_over = Making().eval(), host("modes"), threading.Event()
    with torch.no_grad():
        expected = model(X)
    plans: list[int] = []

    def plan() -> None:
        while not is_over.is_set():
            plans.append(len(attn_surgery.plan(other).sites))

    with ThreadPoolExecutor(1) as pool:
        planning = pool.submit(plan)
        try:
            with torch.no_grad():
                while len(plans) < 10 and not planning.done():
                    assert torch.equal(model(X), expected)
        finally:
            is_over.set()
    planning.result()
    assert set(plans) == {2}


# Workers


def work(model: nn.Module, results: Any) -> None:
    """Run what was given, and operate anew, in another process."""
    torch.set_num_threads(1)
    with torch.no_grad():
        given = model(X)
        attn_surgery.remove(model)
        own = attn_surgery.apply(model, "se")(X)
    results.put((given.tolist(), own.tolist()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    model = operated("modes")
    with torch.no_grad():
        expected, plain = model(X).tolist(), host("modes")(X).tolist()
    worker = context.Process(target=partial(work, model, results))
    worker.start()
    given, own = results.get(timeout=120)
    worker.join()
    assert worker.exitcode == 0
    assert given == expected
    assert own == plain
