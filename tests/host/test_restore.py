"""What is put back: random states, of accelerators too, which nobody wakes for that."""

from __future__ import annotations

import random

import pytest
import torch

from attn_surgery.host.restore import undisturbed_randomness
from tests.pretended import Accelerator

KINDS = ["cuda", "xpu", "mps"]


def test_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    states = torch.get_rng_state(), random.getstate()
    with undisturbed_randomness():
        torch.rand(3)
        random.random()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerator_in_use_draws_on_as_if_nothing_had_been(monkeypatch, kind):
    there = Accelerator(monkeypatch, kind)
    before = there.states()
    with undisturbed_randomness():
        there.draw()
    assert there.states() == before


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_one_that_nobody_uses_is_not_initialised(monkeypatch, kind):
    there = Accelerator(monkeypatch, kind, is_initialized=False)
    for device in (None, torch.device("cpu"), torch.device("meta")):
        with undisturbed_randomness(device, seed=0):
            pass
    with torch.device("meta"), undisturbed_randomness():
        pass
    assert not there.is_initialized
    assert there.seeds == [], "it would be seeded as soon as somebody uses it"


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_one_that_is_going_to_be_used(monkeypatch, kind):
    there = Accelerator(monkeypatch, kind, is_initialized=False)
    before = there.states()
    with undisturbed_randomness(torch.device(kind, 1)):
        there.draw()
    assert there.states() == before


def test_the_default_device_is_going_to_be_used(monkeypatch):
    there = Accelerator(monkeypatch, is_initialized=False)
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda", 0))
    before = there.states()
    with undisturbed_randomness():
        there.draw()
    assert there.states() == before


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_put_back_is_seeded(monkeypatch, kind):
    there = Accelerator(monkeypatch, kind)
    before, drawn = (torch.get_rng_state(), there.states()), []
    for seed in (5, 6, 5):
        with undisturbed_randomness(seed=seed):
            drawn.append((float(torch.rand(())), there.draw()))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert there.states() == before[1]
    assert drawn[0] == drawn[2] != drawn[1]


def test_it_is_put_back_after_a_failure(monkeypatch):
    there = Accelerator(monkeypatch)
    before = torch.get_rng_state(), random.getstate(), there.states()

    def fail() -> None:
        raise ZeroDivisionError(there.draw(), torch.rand(()), random.random())

    with pytest.raises(ZeroDivisionError), undisturbed_randomness(seed=0):
        fail()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), there.states()) == before[1:]
