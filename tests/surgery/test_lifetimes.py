"""A model that goes out of scope goes at once, as the host alone does, without the collector."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import hosts_with_attention as held
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import attn_surgery
from attn_surgery import SurgeryError


@pytest.fixture(autouse=True, scope="module")
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Refusing(nn.Module):
    """Nothing in it can be followed, and a failed trace holds what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return x + self.conv(x)[list(range(int(x.sum())))]
        finally:
            raise ValueError(x)


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "rewrite": partial(hosts.Network, hosts.Block),
    "modes": partial(hosts.Network, hosts.Modes),
    "attach": partial(hosts.Network, hosts.Flag),
    "attributes": partial(hosts.Network, hosts.Attributes),
    "writing": partial(hosts.Network, hosts.Recorder),
    "loop": partial(hosts.Network, hosts.Loop),
    "swap": partial(held.Net, held.OwnModule),
    "instead": partial(held.Net, held.ChildGate),
    "refusing": partial(hosts.Network, Refusing),
}

IN_CYCLES: dict[str, Callable[[], nn.Module]] = {
    "patched": partial(hosts.Network, hosts.patched),
    "graph": hosts.graph_module_network,
}
"""Hosts that go with the collector only."""


# What is done to a host


def planned(host: nn.Module) -> list[Any]:
    attn_surgery.plan(host, existing="replace")
    attn_surgery.plan(host, position="pre")
    return [host]


def operated(host: nn.Module) -> list[Any]:
    attn_surgery.apply(host, "cbam")
    return [host]


def operated_twice(host: nn.Module) -> list[Any]:
    attn_surgery.apply(host, "cbam", existing="replace")
    attn_surgery.apply(host, "se", existing="stack")
    return [host]


def restored(host: nn.Module) -> list[Any]:
    attn_surgery.remove(attn_surgery.apply(host, "cbam", existing="replace"))
    return [host]


def copied(host: nn.Module) -> list[Any]:
    return [host, copy.deepcopy(attn_surgery.apply(host, "cbam"))]


def listening(host: nn.Module) -> list[Any]:
    attn_surgery.apply(host, "cbam")
    for block in host.modules():
        if isinstance(block, hosts.Attributes):
            block.last = lambda x: torch.relu(x) if x.sum() > 0 else x
    return [host]


def run(host: nn.Module) -> list[Any]:
    operated(host)
    host(torch.randn(2, 3, 8, 8)).sum().backward()
    return [host]


def refused(host: nn.Module) -> list[Any]:
    with pytest.raises(SurgeryError):
        attn_surgery.apply(host, "cbam", where="nowhere")
    return [host]


DONE = [planned, operated, operated_twice, restored, copied, listening, run, refused]


def watched(make: Callable[[], nn.Module], do: Callable[[nn.Module], list[Any]]) -> list[Any]:
    """Return references to all of three models that went out of scope."""
    found: list[tuple[str, weakref.ref[Any]]] = []
    for _ in range(3):
        host = make()
        known = [host]
        with contextlib.suppress(SurgeryError):  # where there is nothing to be done
            known = do(host)
        named = [each for one in known for each in (*one.named_modules(), *one.named_parameters())]
        found += [(path, weakref.ref(each)) for path, each in named]
        del host, known, named
    return found


def left(found: list[Any]) -> list[str]:
    return [path for path, reference in found if reference() is not None]


def itself(host: nn.Module) -> list[Any]:
    return [host]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("do", DONE)
@pytest.mark.parametrize("name", HOSTS)
def test_models_go_with_the_collector_off(name, do):
    assert left(watched(HOSTS[name], do)) == left(watched(HOSTS[name], itself)) == []


@pytest.mark.parametrize("do", [planned, operated, restored])
def test_a_network_of_many_blocks_goes_with_the_collector_off(do):
    assert left(watched(resnet18, do)) == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("do", DONE)
@pytest.mark.parametrize("name", IN_CYCLES)
def test_models_that_wait_for_the_collector_by_themselves_go_with_it(name, do):
    found = watched(IN_CYCLES[name], do)
    assert left(found)
    gc.collect()
    assert left(found) == []


def test_files_bring_nothing_that_stays(tmp_path):
    path = tmp_path / "attention.safetensors"

    def loaded(host: nn.Module) -> list[Any]:
        attn_surgery.load(host, path)
        return [host]

    attn_surgery.save(attn_surgery.apply(hosts.Network(hosts.Block), "se"), path, host="all")
    assert left(watched(partial(hosts.Network, hosts.Block), loaded)) == []


_FIRST = """
import gc, weakref
gc.disable()
import torch, torchvision
host = torchvision.models.resnet18()
import attn_surgery
attn_surgery.plan(host)
gone = weakref.ref(host)
del host
assert gone() is None
assert torch.ones in torch.overrides.get_ignored_functions()
"""


def test_the_first_model_of_a_process_goes_too():
    environment = os.environ | {"PYTHONPATH": str(Path(attn_surgery.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", _FIRST], check=True, env=environment)
