"""An optimizer that was made before the surgery: what is new trains, what is gone is forgotten."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hosts
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim import lr_scheduler

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune import param_groups, update_optimizer

SCALE = 10.0


def made() -> nn.Module:
    torch.manual_seed(0)
    return hosts.Network(hosts.Block)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what an optimizer holds, by identity and by value."""
    return [
        [{k: v for k, v in group.items() if k != "params"}, [id(each) for each in group["params"]]]
        for group in optimizer.param_groups
    ]


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {group.get("name", ""): group for group in optimizer.param_groups}


def test_what_was_inserted_trains_at_its_own_rate() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.9), weight_decay=0.1)
    step(model, optimizer)
    host = numbers(optimizer)
    kept = copy.deepcopy(optimizer.state_dict()["state"])
    attn_surgery.apply(model, "se", reduction=2)
    assert update_optimizer(optimizer, model) == ["attention", "attention_no_decay"]
    assert numbers(optimizer)[:1] == host
    for number, state in kept.items():
        for name, value in state.items():
            assert torch.equal(optimizer.state_dict()["state"][number][name], value)
    groups = groups_of(optimizer)
    assert groups["attention"]["lr"] == groups["attention_no_decay"]["lr"] == 1e-2
    assert groups["attention"]["betas"] == (0.8, 0.9)
    assert groups["attention"]["weight_decay"] == 0.1
    assert groups["attention_no_decay"]["weight_decay"] == 0
    before = {name: p.clone() for name, p in model.named_parameters()}
    step(model, optimizer)
    gates = [name for name in before if "attn" in name and name.endswith("bias")]
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert gates
    assert set(moved) & set(gates)


def test_groups_are_those_of_param_groups() -> None:
    model = attn_surgery.apply(made(), "cbam")
    expected = {each["name"]: each for each in param_groups(model, lr=0.1, weight_decay=0.3)}
    host = [*expected["host"]["params"], *expected["host_no_decay"]["params"]]
    optimizer = torch.optim.SGD(host, lr=0.1, weight_decay=0.3)
    update_optimizer(optimizer, model)
    for name in ("attention", "attention_no_decay"):
        own = groups_of(optimizer)[name]
        assert [id(p) for p in own["params"]] == [id(p) for p in expected[name]["params"]]
        assert (own["lr"], own["weight_decay"]) == (1.0, expected[name]["weight_decay"])


def test_what_was_removed_is_forgotten() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    before = numbers(optimizer)
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model)
    step(model, optimizer)
    attn_surgery.remove(model)
    assert update_optimizer(optimizer, model) == []
    assert numbers(optimizer) == before
    assert {id(each) for each in optimizer.state} == set(before[0][1])
    torch.optim.AdamW(made().parameters()).load_state_dict(optimizer.state_dict())


def test_twice_is_as_once() -> None:
    model = attn_surgery.apply(made(), "se")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert update_optimizer(optimizer, model) == []  # it has them
    assert len(optimizer.param_groups) == 1
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model)
    once = numbers(optimizer)
    assert update_optimizer(optimizer, model) == []
    assert numbers(optimizer) == once


def test_more_attention_joins_the_groups() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attn_surgery.apply(model, "se", where="body.0")
    update_optimizer(optimizer, model)
    first = groups_of(optimizer)["attention"]
    number = len(first["params"])
    attn_surgery.apply(model, "se", existing="stack")
    assert update_optimizer(optimizer, model) == []
    assert len(first["params"]) > number
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, everything)) == sorted(map(id, model.parameters()))


def test_other_modules_of_the_optimizer_are_left_alone() -> None:
    model, other = made(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(
        [{"params": model.parameters()}, {"params": other.parameters(), "name": "other"}], lr=0.1
    )
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model)
    attn_surgery.remove(model)
    update_optimizer(optimizer, model)
    assert [group.get("name") for group in optimizer.param_groups] == [None, "other"]


def test_what_is_frozen_is_no_business_of_it() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for each in attn_surgery.inserted(attn_surgery.apply(model, "se")).values():
        each.requires_grad_(False)
    assert update_optimizer(optimizer, model) == []


def test_optimizers_that_know_names() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.named_parameters())
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model)
    for group in optimizer.param_groups:
        named = dict(model.named_parameters())
        assert [id(named[n]) for n in group["param_names"]] == [id(p) for p in group["params"]]
    attn_surgery.remove(model)
    update_optimizer(optimizer, model)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
        lr_scheduler.ExponentialLR(optimizer, 0.5),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 5], 0.1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "sequential": sequential,
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "timm": lambda o: CosineLRScheduler(o, 10, warmup_t=2, warmup_lr_init=0.0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(name: str) -> None:
    """The host's rate is what it would have been, and the attention's ten times it."""
    model, alone = made(), made()
    optimizer, reference = (
        torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, alone)
    )
    scheduler, other = SCHEDULERS[name](optimizer), SCHEDULERS[name](reference)

    def go(turn: int) -> None:
        for each, own, schedule in ((model, optimizer, scheduler), (alone, reference, other)):
            step(each, own)
            schedule.step(turn + 1) if name == "timm" else schedule.step()

    for turn in range(3):
        go(turn)
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model, attention_lr_scale=SCALE, schedulers=[scheduler])
    for turn in range(3, 7):
        go(turn)
        host, *attention = [group["lr"] for group in optimizer.param_groups]
        assert host == pytest.approx(reference.param_groups[0]["lr"])
        assert attention == pytest.approx([SCALE * host] * 2)
    attn_surgery.remove(model)
    update_optimizer(optimizer, model, schedulers=[scheduler])
    for turn in range(7, 9):
        go(turn)
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])


def test_a_plateau() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.01)
    attn_surgery.apply(model, "se")
    update_optimizer(optimizer, model, schedulers=[scheduler])
    for _ in range(20):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1, 0.1])


def test_mistakes() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SurgeryError, match="attention_lr_scale=-1 is not a number of at least 0"):
        update_optimizer(optimizer, model, attention_lr_scale=-1)
    optimizer.param_groups.clear()
    with pytest.raises(SurgeryError, match="the optimizer has no group of parameters"):
        update_optimizer(optimizer, model)
