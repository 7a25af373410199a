"""The words of a stage's ``trains``: what they name, what stays, and how fast each part learns."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune import param_groups
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.loop import train
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.recipe import Stage
from attn_surgery.finetune.small_resnet import SmallResNet
from attn_surgery.finetune.training.owners import norm_parameters
from attn_surgery.finetune.training.trained import (
    choose_trained,
    keep_statistics,
    trained_parameters,
)
from tests.finetuning import tiny

NORMS = {
    f"{path}.{name}"
    for path, module in SmallResNet().named_modules()
    if isinstance(module, nn.BatchNorm2d)
    for name in ("weight", "bias")
}
HEAD = {"fc.weight", "fc.bias"}


def trained(model: nn.Module, *trains: str, **others: Any) -> set[str]:
    choose_trained(model, Stage(trains=trains, **others))
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        (torchvision.models.resnet18, nn.BatchNorm2d),
        (torchvision.models.convnext_tiny, nn.LayerNorm),
        (lambda: timm.create_model("test_convnext"), nn.LayerNorm),
        (lambda: timm.create_model("efficientnet_lite0"), nn.BatchNorm2d),
        (lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True)), nn.InstanceNorm2d),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), nn.GroupNorm),
    ],
)
def test_weights_and_biases_of_all_norms(host, kind):
    model = host()
    norms = [path for path, module in model.named_modules() if isinstance(module, kind)]
    assert norms
    assert norm_parameters(model) == [f"{p}.{part}" for p in norms for part in ("weight", "bias")]
    with_attention = attn_surgery.apply(host(), "cbam") if len(norms) > 1 else host()
    assert norm_parameters(with_attention) == norm_parameters(model)


def test_norms_of_other_people():
    class Fused(nn.Module):
        """A convolution and a norm in one."""

        running_var: torch.Tensor

        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 4, 3, 3))
            self.gamma = nn.Parameter(torch.ones(4))
            self.bias = nn.Parameter(torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

    assert norm_parameters(nn.Sequential(Fused())) == ["0.gamma", "0.bias"]


def test_what_norms_train():
    model = attn_surgery.apply(SmallResNet(), "cbam")
    attention = {name for name, _ in model.named_parameters() if ".attn." in name}
    assert trained(model, "attention", "norms") == NORMS | attention
    model.requires_grad_(True)
    assert trained(model, "head", "attention", "norms") == NORMS | attention | {
        "fc.weight",
        "fc.bias",
    }
    plain = SmallResNet()
    assert trained(plain, "norms", freezes=("layer1",)) == {n for n in NORMS if "layer1" not in n}


def test_what_a_host_made_constant_stays_so():
    model = SmallResNet()
    model.bn1.weight.requires_grad_(False)
    assert trained(model, "norms") == NORMS - {"bn1.weight"}


def test_a_host_without_weights_in_norms():
    model = torchvision.models.vgg11()
    with pytest.raises(SurgeryError, match="no norm of the host has a weight to train"):
        trained(model, "norms")


def test_how_many_train_leaves_the_model_as_it_was():
    model = attn_surgery.apply(SmallResNet(), "se")
    model.conv1.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    stages = [Stage(trains=("attention",)), Stage(trains=("head", "norms"))]
    found = trained_parameters(model, stages)
    assert [p.requires_grad for p in model.parameters()] == before
    named = dict(model.named_parameters())
    own = {*NORMS, *HEAD, *(name for name in named if ".attn." in name)}
    assert found == sum(named[name].numel() for name in own)
    with pytest.raises(SurgeryError):
        trained_parameters(model, [Stage(trains=("layer9",))])
    assert [p.requires_grad for p in model.parameters()] == before


# Statistics


@pytest.mark.parametrize(
    ("stage", "batch", "live"),
    [
        ({"trains": ("norms",)}, 64, set()),
        ({"trains": ("head", "attention", "norms")}, 64, set()),
        ({"trains": ("attention", "norms"), "norm_stats": "live"}, 2, {"bn1", "layer1", "layer3"}),
        ({"trains": ("norms", "layer3")}, 64, {"layer3"}),
        ({"trains": ("norms", "layer3")}, 8, set()),
        ({"trains": ("norms", "layer3"), "norm_stats": "frozen"}, 64, set()),
        ({"trains": ("*.bn?.*", "bn1")}, 64, {"bn1", "layer1", "layer3"}),  # as before
    ],
)
def test_statistics_follow_no_batches_in_a_frozen_host(stage, batch, live):
    model = attn_surgery.apply(SmallResNet(), "cbam").train()
    choose_trained(model, Stage(**stage))
    keep_statistics(model, Stage(**stage), batch)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.train()(torch.randn(4, 1, 28, 28))
    moved = {k for k, value in model.named_buffers() if not torch.equal(before[k], value)}
    assert any(".attn." in key for key in moved)
    hosts = {key for key in moved if ".attn." not in key}
    assert {
        part for part in ("bn1", "layer1", "layer3") if any(k.startswith(part) for k in hosts)
    } == live


class Odd(SmallResNet):
    """Has buffers that no norm of torch's has."""

    calls: torch.Tensor

    def __init__(self):
        super().__init__(channels=1, width=4)
        spectral_norm(self.conv1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("trains", "held"),
    [
        (["head"], True),
        (["head", "attention"], True),
        (["norms", "attention"], True),
        (["layer3", "attention"], False),
    ],
)
@pytest.mark.parametrize("variant", ["se", "control"])
def test_a_frozen_host_keeps_all_its_buffers(tmp_path, monkeypatch, trains, held, variant):
    monkeypatch.setattr("attn_surgery.finetune.hosts.load_model", lambda *_, **__: Odd())
    recipe = tiny(
        tmp_path,
        surgery={"attention": ["se"]},
        pretraining=[],
        stages=[{"trains": trains, "epochs": 1, "lr": 0.1}],
    )
    context = Context.of(recipe)
    model = operated(recipe, variant, 0, context.fresh_host(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(Run(context, variant, 0, model))
    moved = {k for k, value in model.state_dict().items() if not torch.equal(before[k], value)}
    assert moved
    assert ("calls" not in moved) == held
    assert held == (not any("running" in key or "parametrizations" in key for key in moved))


# Rates


def test_each_part_may_have_a_rate_of_its_own():
    model = attn_surgery.apply(SmallResNet(), "se")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, 0.1, 10.0, 0.5, head_lr_scale=2.0, norms_lr_scale=3.0)
    told = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert told == {
        "host": (0.1, 0.5),
        "attention": (1.0, 0.5),
        "attention_no_decay": (1.0, 0.0),
        "head": (0.2, 0.5),
        "head_no_decay": (0.2, 0.0),
        "norms_no_decay": (pytest.approx(0.3), 0.0),
    }
    owned = {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert owned["head"] | owned["head_no_decay"] == HEAD
    assert owned["norms_no_decay"] == NORMS
    assert sorted(name for each in owned.values() for name in each) == sorted(names.values())


def test_one_rate_is_one_group():
    """So that optimizers of runs from before there were others load."""
    model = attn_surgery.apply(SmallResNet(), "se")
    named = [group["name"] for group in param_groups(model, 0.1)]
    assert named == ["host", "host_no_decay", "attention", "attention_no_decay"]


@pytest.mark.parametrize("name", ["head_lr_scale", "norms_lr_scale"])
def test_impossible_rates(name):
    with pytest.raises(SurgeryError, match=f"{name}=-1 is not"):
        param_groups(SmallResNet(), 0.1, **{name: -1})


def test_the_rates_of_a_stage(tmp_path):
    stage = {"trains": ["head", "norms", "attention"], "lr": 0.01, "schedule": "constant"}
    recipe = tiny(
        tmp_path,
        surgery={"attention": ["se"]},
        stages=[{**stage, "head_lr_scale": 0, "norms_lr_scale": 0.5, "optimizer": "sgd"}],
    )
    context = Context.of(recipe)
    model = operated(recipe, "se", 0, context.fresh_host(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(Run(context, "se", 0, model))
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert {name for name in moved if ".attn." not in name} == NORMS
