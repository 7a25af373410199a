"""The helpers for a training loop: what trains how fast, what stays, what the teacher says."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import timm
import torch
import torchvision
from hosts import Counter, Network
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.finetune import (
    distillation_loss,
    freeze,
    freeze_norm_statistics,
    param_groups,
    thaw_norm_statistics,
)

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def resnet(attention="se", **options) -> nn.Module:
    torch.manual_seed(0)
    return attn_surgery.apply(torchvision.models.resnet18(num_classes=10), attention, **options)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> nn.Module:
    """Train on the same images, in training mode."""
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(X).square().mean().backward()
        optimizer.step()
    return model


def names_by_group(model: nn.Module, **options) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, 0.1, **options)
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


# Groups


def test_groups_of_a_resnet():
    model = resnet("cbam")
    assert [list(group) for group in param_groups(model, 0.1)] == [
        ["name", "params", "lr", "weight_decay"]
    ] * 4
    groups = names_by_group(model)
    names = [name for name, _ in model.named_parameters()]
    assert groups["host"] == {
        name
        for name in names
        if ".attn." not in name
        and name.endswith(("conv1.weight", "conv2.weight", "downsample.0.weight", "fc.weight"))
    }
    assert groups["attention"] == {
        name for name in names if ".attn." in name and name.endswith(("fc.weight", "conv.weight"))
    } | {name for name in names if name.endswith(("fc1.weight", "fc2.weight"))}
    assert sorted(name for group in groups.values() for name in group) == sorted(names)


def test_rates_and_decays():
    rates = {
        group["name"]: (group["lr"], group["weight_decay"])
        for group in param_groups(resnet(), 0.1, attention_lr_scale=3.0, weight_decay=0.5)
    }
    assert rates == {
        "host": (0.1, 0.5),
        "host_no_decay": (0.1, 0.0),
        "attention": (pytest.approx(0.3), 0.5),
        "attention_no_decay": (pytest.approx(0.3), 0.0),
    }


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_a_decay_of_the_attention_alone(decay):
    groups = param_groups(resnet(), 0.1, weight_decay=0.5, attention_weight_decay=decay)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, decay, 0.0]


def test_one_step_moves_each_group_as_it_says():
    model = resnet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, torch.optim.SGD(param_groups(model, 0.1, 3.0, 0.5)))
    for name, p in model.named_parameters():
        lr = 0.3 if ".attn." in name else 0.1
        decay = 0.5 if p.ndim > 1 else 0.0
        assert p.grad is not None
        moved = before[name] - lr * (p.grad + decay * before[name])
        torch.testing.assert_close(p.detach(), moved, msg=name)


class Odd(nn.Module):
    """Parameters of unusual shapes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 1, 1)  # a weight, though all but one of its dimensions are 1
        self.maps = nn.LayerNorm([8, 4, 4])
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.table = nn.Parameter(torch.ones(8, 4))
        self.matrix = nn.Parameter(torch.ones(8, 4))
        self.bias = nn.Parameter(torch.ones(8, 4))
        self.standard = ScaledStdConv2d(8, 8, 1)

    def no_weight_decay(self):
        return {"table"}


def test_norms_and_scales_of_any_shape_do_not_decay():
    groups = names_by_group(nn.Sequential(Odd()))
    assert groups == {
        "host": {"0.conv.weight", "0.matrix", "0.standard.weight"},
        "host_no_decay": {
            "0.conv.bias",
            "0.maps.weight",
            "0.maps.bias",
            "0.scale",
            "0.table",
            "0.bias",
            "0.standard.gain",
            "0.standard.bias",
        },
    }


@pytest.mark.parametrize(
    ("attention", "plain"),
    [
        (lambda channels: nn.Conv2d(channels, channels, 1), {"alpha", "f.bias"}),
        ("gct", {"alpha", "beta", "gamma"}),
        ("eca", set()),
    ],
)
def test_gates_do_not_decay(attention, plain):
    model = resnet(attention, where="layer1.0")
    groups = names_by_group(model)
    found = {name.removeprefix("layer1.0.attn.") for name in groups.get("attention_no_decay", ())}
    assert {name for name in found if name in plain} == plain
    assert found == plain or attention == "eca"
    weights = {name.removeprefix("layer1.0.attn.") for name in groups.get("attention", ())}
    assert not weights & {"alpha", "beta", "gamma"}
    assert attention != "eca" or any(name.endswith("conv.weight") for name in weights)


def test_what_is_frozen_or_shared_is_not_listed_twice():
    model = resnet()
    model.get_submodule("layer1.1").conv1 = model.get_submodule("layer1.0.conv1")
    freeze(model, "layer4")
    parameters = [p for group in param_groups(model, 0.1) for p in group["params"]]
    assert all(p.requires_grad for p in parameters)
    assert len({id(p) for p in parameters}) == len(parameters)
    assert len(parameters) == sum(p.requires_grad for p in model.parameters())


def test_a_replaced_attention_is_trained_as_attention():
    model = attn_surgery.apply(
        torchvision.models.mobilenet_v3_small(), "cbam", existing="replace", where="features.4"
    )
    (path,) = attn_surgery.inserted(model)
    groups = names_by_group(model)
    attention = groups["attention"] | groups["attention_no_decay"]
    assert attention
    assert all(name.startswith(f"{path}.") for name in attention)
    assert not any(name.startswith(f"{path}.") for name in groups["host"])


def test_a_host_without_attention_has_two_groups():
    names = list(names_by_group(timm.create_model("resnet10t")))
    assert names == ["host", "host_no_decay"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 is not"),
        ({"lr": 0.1, "attention_lr_scale": -1}, "attention_lr_scale=-1 is not"),
        ({"lr": 0.1, "weight_decay": math.nan}, "weight_decay=nan is not"),
    ],
)
def test_impossible_numbers(numbers, message):
    with pytest.raises(SurgeryError, match=message):
        param_groups(resnet(), **numbers)


def test_nothing_to_train():
    with pytest.raises(SurgeryError, match="nothing to train"):
        param_groups(resnet().requires_grad_(False), 0.1)


# Frozen parameters


def frozen(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("conv1", lambda name: name == "conv1.weight"),
        ("layer1", lambda name: name.startswith("layer1.")),
        ("layer[12].*", lambda name: name.startswith(("layer1.", "layer2."))),
        ("*.bn2", lambda name: ".bn2." in name),
        ("*.bias", lambda name: name.endswith(".bias")),
        (["conv1", "bn1", "fc.bias"], lambda name: name[:3] in ("con", "bn1") or name == "fc.bias"),
        ("*", lambda name: True),
        ([], lambda name: False),
    ],
)
def test_patterns_freeze_the_host_and_no_attention(patterns, expected):
    model = resnet("cbam")
    names = [name for name, _ in model.named_parameters()]
    returned = freeze(model, patterns)
    assert returned == [name for name in names if expected(name) and ".attn." not in name]
    assert frozen(model) == returned


def test_attention_is_frozen_when_asked():
    model = resnet()
    freeze(model, "layer1", keep_attention=False)
    assert frozen(model) == [n for n, _ in model.named_parameters() if n.startswith("layer1.")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layr1.*", "'layr1.*' names no parameter .*; did you mean 'layer1'"),
        ("relu", "'relu' names no parameter and no module with parameters"),
        ("*.attn", "'.*attn' selects attention alone.*keep_attention=False"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_refused(pattern, message):
    model = resnet()
    with pytest.raises(SurgeryError, match=message):
        freeze(model, ["layer2", pattern])
    assert frozen(model) == []


def test_a_shared_parameter_is_frozen_by_either_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert freeze(model, "1") == ["0.weight", "1.bias"]


# Frozen statistics


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    after = dict(model.named_buffers())
    return {
        name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }


def test_attention_alone_moves_nothing_of_the_host():
    model = resnet("cbam")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    freeze(model, "*")
    freeze_norm_statistics(model)
    trained(model, torch.optim.AdamW(param_groups(model, 0.01)), steps=3)
    after = model.state_dict()
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still == {key for key in before if ".attn." not in key}


def test_the_host_normalizes_by_its_statistics_and_attention_by_batches():
    model = resnet("cbam", where="layer2.0")
    with torch.no_grad():
        for _ in range(3):
            model.train()(X + 1)
    expected = attn_surgery.remove(copy.deepcopy(model)).eval()(X)
    before = statistics(model)
    freeze_norm_statistics(model)
    model.train().train(False).train()
    torch.testing.assert_close(model(X), expected)
    assert moved(before, model) == {"layer2.0.attn.spatial.conv.bn"}
    assert model.get_submodule("layer2.0.attn.spatial.conv.bn").training


def test_attention_held_by_a_norm_stays_in_training_mode():
    model = attn_surgery.apply(Network(Counter), "cbam")
    paths = list(attn_surgery.inserted(model))
    assert paths == ["body.0.bn2.attn", "body.1.bn2.attn"]
    freeze_norm_statistics(model)
    before = statistics(model)
    model.train()(torch.randn(2, 3, 8, 8))
    assert moved(before, model) == {f"{path}.spatial.conv.bn" for path in paths}


def test_it_ends():
    model = resnet()
    with freeze_norm_statistics(model, ["bn1", "layer1"]) as handle:
        assert repr(handle) == f"FrozenStatistics(paths={handle.paths!r})"  # not all of the model
        assert handle.paths == (
            "bn1",
            *(f"layer1.{block}.{norm}" for block in (0, 1) for norm in ("bn1", "bn2")),
        )
        before = statistics(model)
        model.train()(X)
        assert moved(before, model).isdisjoint(handle.paths)
        assert "layer2.0.bn1" in moved(before, model)
    assert all(module.training for module in model.modules())
    model(X)
    assert moved(before, model) >= set(handle.paths)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_what_a_call_froze_is_thawed_by_its_handle():
    model = resnet()
    outer = freeze_norm_statistics(model, "layer1")
    inner = freeze_norm_statistics(model)
    assert set(outer.paths).isdisjoint(inner.paths)
    inner.remove()
    before = statistics(model)
    model.train()(X)
    assert moved(before, model).isdisjoint(outer.paths)
    assert thaw_norm_statistics(model) == list(outer.paths)
    assert thaw_norm_statistics(model) == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_frozen_on_their_own(copied):
    model = attn_surgery.remove(resnet())
    handle = freeze_norm_statistics(model)
    other = copied(model)
    handle.remove()
    before = statistics(model)
    other.train()(X)
    model.train()(X)
    assert moved(before, other) == set()
    assert moved(before, model) == set(handle.paths)
    assert thaw_norm_statistics(other) == list(handle.paths)


def test_within_distributed_data_parallel(tmp_path):
    model = resnet("cbam")
    freeze(model, "*")
    freeze_norm_statistics(model)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        trained(parallel, torch.optim.AdamW(param_groups(parallel, 0.01)))
    finally:
        torch.distributed.destroy_process_group()
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(".attn." in key for key in changed)


def test_patterns_of_norms():
    model = resnet()
    with pytest.raises(SurgeryError, match=r"'layr1' names no norm .*; did you mean 'layer1'"):
        freeze_norm_statistics(model, "layr1")
    with pytest.raises(SurgeryError, match="'fc' names no norm"):
        thaw_norm_statistics(model, "fc")
    without = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    assert freeze_norm_statistics(without).paths == ()
    with pytest.raises(SurgeryError, match="names no norm"):
        freeze_norm_statistics(without, "1")


# Distillation


def plain_distillation(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Sum over images and classes, number by number."""
    total = 0.0
    for row_student, row_teacher in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (
            [math.exp(z / temperature) / sum(math.exp(y / temperature) for y in row) for z in row]
            for row in (row_teacher, row_student)
        )
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student) * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_that_of_the_paper(temperature):
    student, teacher = torch.randn(5, 7), 3 * torch.randn(5, 7)
    expected = plain_distillation(student, teacher, temperature)
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected)


def test_its_gradient_is_that_of_equation_2():
    # dC/dz_i = T (q_i - p_i), with T^2, an image of N
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    distillation_loss(student, teacher, 3.0).backward()
    difference = F.softmax(student / 3, 1) - F.softmax(teacher / 3, 1)
    torch.testing.assert_close(student.grad, (3 * difference / 5).detach())
    assert teacher.grad is None


def test_half_precision_logits_are_compared_in_single():
    student, teacher = torch.randn(5, 7).bfloat16(), torch.randn(5, 7).bfloat16()
    loss = distillation_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(student.float(), teacher.float(), 4.0))
    assert distillation_loss(student.double(), teacher.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "message"),
    [
        ((4, 10), (4, 1000), 1.0, r"\(4, 10\) of the student with \(4, 1000\).*fit the teacher"),
        ((4, 3, 8, 8), (4, 3, 8, 8), 1.0, "flatten maps"),
        ((4, 3), (4, 3), 0, "temperature=0 is not"),
        ((4, 3), (4, 3), math.inf, "temperature=inf is not"),
        ((4, 3), (4, 3), math.nan, "temperature=nan is not"),
    ],
)
def test_logits_that_cannot_be_compared(student, teacher, temperature, message):
    with pytest.raises(SurgeryError, match=message):
        distillation_loss(torch.zeros(student), torch.zeros(teacher), temperature)
