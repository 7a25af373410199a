"""What the verbs accept, what they refuse, and that a refusal leaves the host alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.planning import decision, request, rewritten_forwards
from attn_surgery.surgery import edits as editing
from attn_surgery.surgery import verbs


@pytest.fixture
def host() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.resnet18()


def fingerprint(host: nn.Module) -> list[Any]:
    """Return everything that a surgery may touch, by identity."""
    return [
        (path, type(module), sorted(vars(module)), [*map(id, module._modules.values())])
        for path, module in host.named_modules()
    ] + [(key, id(tensor)) for key, tensor in host.named_parameters()]


@pytest.fixture
def untouched(host):
    before = fingerprint(host)
    yield
    assert fingerprint(host) == before


def blocks(plan: attn_surgery.Plan) -> list[str]:
    return [site.block for site in plan.sites]


# Where attention is built


@pytest.mark.parametrize("attention", ["se", "eca", nn.BatchNorm2d])
def test_attention_is_built_for_its_host_whatever_the_default_device_is(attention):
    drawn = []
    for place in ("cpu", "meta"):
        host = torchvision.models.resnet18()
        torch.manual_seed(0)
        with torch.device(place):
            attn_surgery.apply(host, attention)
        held = attn_surgery.inserted(host)["layer4.1.attn"].state_dict()
        assert {value.device.type for value in held.values()} == {"cpu"}
        drawn.append(held)
    assert all(torch.equal(value, drawn[1][key]) for key, value in drawn[0].items())


# where, attention, existing


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("layer4.*", ["layer4.0", "layer4.1"]),
        (["layer1.0", "layer4.?"], ["layer1.0", "layer4.0", "layer4.1"]),
        (lambda site: site.channels == 128, ["layer2.0", "layer2.1"]),
    ],
    ids=["pattern", "list", "predicate"],
)
def test_where_selects_blocks(host, where, expected):
    plan = attn_surgery.plan(host, "se", where=where)
    assert blocks(plan) == expected
    assert {site.reason for site in plan.skipped} == {"not selected by where"}
    attn_surgery.apply(host, "se", where=where)
    assert list(attn_surgery.inserted(host)) == [f"{path}.attn" for path in expected]


def test_a_mapping_puts_different_attention_at_different_sites(host):
    attention = {"layer4.*": "cbam", "layer?.0": "se", "layer3.*": lambda c: nn.Conv2d(c, c, 1)}
    attn_surgery.apply(host, attention)
    kinds = {path: type(found).__name__ for path, found in attn_surgery.inserted(host).items()}
    assert kinds["layer4.0.attn"] == kinds["layer4.1.attn"] == "CBAM"
    assert kinds["layer3.0.attn"] == "SE"
    assert kinds["layer3.1.attn"] == "IdentityStart"
    assert "layer2.1.attn" not in kinds


def test_a_callable_gets_the_channels_and_the_options(host):
    seen = []

    def build(channels, *, slope):
        seen.append((channels, slope))
        return nn.LeakyReLU(slope)

    attn_surgery.apply(host, build, init="paper", slope=0.3, where="layer2.*")
    assert seen == [(128, 0.3)] * 2


def test_attention_that_was_inserted_is_existing_attention(host):
    attn_surgery.apply(host, "se")
    plan = attn_surgery.plan(host, "cbam")
    assert not plan.sites
    assert {site.existing for site in plan.skipped} == {"attn"}
    attn_surgery.apply(host, "cbam", existing="stack")
    assert list(attn_surgery.inserted(host))[:2] == ["layer1.0.attn", "layer1.0.attn_1"]


def test_stacking_runs_both_in_order_and_remove_takes_both():
    host = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 32, 32)
    expected, before = host(x), fingerprint(host)
    for name in ("se", "cbam"):
        attn_surgery.apply(host, name, existing="stack")
        assert torch.equal(host(x), expected)
    order: list[str] = []
    for path, attention in attn_surgery.inserted(host).items():
        attention.register_forward_hook(lambda *_, path=path: order.append(path))
    host(x)
    assert order == list(attn_surgery.inserted(host))
    attn_surgery.remove(host)
    assert fingerprint(host) == before
    assert torch.equal(host(x), expected)


def test_the_attention_acts():
    host = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 32, 32)
    before = host(x)
    attn_surgery.apply(host, "se")
    for attention in attn_surgery.inserted(host).values():
        nn.init.constant_(attention.get_parameter("fc2.bias"), 0.5)
    assert not torch.allclose(host(x), before)


def test_the_attention_follows_device_dtype_and_mode():
    host = torchvision.models.resnet18().double().eval()
    attn_surgery.apply(host, "cbam")
    for attention in attn_surgery.inserted(host).values():
        assert not attention.training
        assert {p.dtype for p in attention.parameters()} == {torch.float64}


def test_a_name_that_is_taken_is_left_alone():
    host = torchvision.models.resnet18().eval()
    setattr(host.layer1[0], "attn", "mine")  # noqa: B010
    attn_surgery.apply(host, "se", where="layer1.0")
    assert list(attn_surgery.inserted(host)) == ["layer1.0.attn_1"]
    attn_surgery.remove(host)
    assert host.layer1[0].attn == "mine"


def test_randomness_is_not_disturbed():
    host = torchvision.models.resnet18()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    attn_surgery.plan(host)
    attn_surgery.apply(host)
    assert torch.equal(torch.rand(3), expected)


def test_plan_changes_nothing(host, untouched):
    attn_surgery.plan(host, "cbam")


def test_planning_runs_no_hooks(host):
    fired = []
    for module in host.modules():
        module.register_forward_hook(lambda module, *_: fired.append(module))
        module.register_forward_pre_hook(lambda module, *_: fired.append(module))
    attn_surgery.plan(host)
    assert not fired


def test_a_predicate_sees_only_sites_that_can_be_cut():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torchvision.models.resnet.BasicBlock(8, 8)
            self.mlp = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))

        def forward(self, x):
            x = self.block(x)
            return x + self.mlp(x)

    seen = []
    plan = attn_surgery.plan(Maps(), "se", where=lambda site: not seen.append(site))
    assert [site.block for site in seen] == ["block"]
    assert [site.reason for site in plan.skipped] == ["1x1 convolutions only: a channel MLP"]


def test_a_plan_is_plain_data(host):
    plan = attn_surgery.plan(host, "se", where="layer1.0")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["sites"][0] == {
        "block": "layer1.0",
        "block_type": "BasicBlock",
        "after": "bn2",
        "channels": 64,
        "spatial_dims": 2,
        "existing": None,
        "method": "rewrite",
        "reason": "",
    }
    assert len(data["skipped"]) == 7


def test_a_plan_prints_as_a_table(host):
    plan = attn_surgery.plan(host, "se", where="layer1.*")
    assert "2 sites to cut" in str(plan)
    assert "layer1.0 to layer1.1  BasicBlock  bn2      64" in str(plan)
    assert "not selected by where" in str(plan)
    assert "layer1.1  BasicBlock  bn2      64" in plan.text(fold=False)


def test_a_plan_without_blocks_says_so():
    plan = attn_surgery.plan(torchvision.models.vgg11().to("meta"), "se")
    assert str(plan) == "0 sites to cut: no residual block was found"


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_no_second_copy_of_the_weights(attention):
    host = torchvision.models.resnet50()
    held = {id(parameter) for parameter in host.parameters()}
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as profiled:
        attn_surgery.apply(host, attention)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events() or [])
    added = [parameter for parameter in host.parameters() if id(parameter) not in held]
    needed = sum(parameter.numel() * parameter.element_size() for parameter in added)
    assert needed <= allocated < 1.1 * needed


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attention": "cbma"}, ["'cbma'", "did you mean 'cbam'", "'se'"]),
        ({"attention": 3}, ["attention", "int"]),
        ({"attention": {}}, ["pattern"]),
        ({"attention": {"layer9.*": "se"}}, ["layer9.*", "layer1.0"]),
        ({"where": "layr4.*"}, ["layr4.*", "layer4.0"]),
        ({"where": ["layer1.*", "nope"]}, ["nope", "layer4.0"]),
        ({"where": lambda site: False}, ["where", "layer4.0"]),
        ({"where": 7}, ["where", "7"]),
        ({"position": "standrad"}, ["standrad", "did you mean 'standard'"]),
        ({"existing": "skp"}, ["skp", "did you mean 'skip'", "'stack'"]),
        ({"kernel_size": 4}, ["kernel_size", "4", "odd"]),
        ({"reduction": 0}, ["reduction", "0"]),
        ({"reductoin": 8}, ["reductoin", "did you mean 'reduction'"]),
        ({"channels": 8}, ["channels"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("verb", [attn_surgery.plan, attn_surgery.apply])
def test_impossible_arguments_are_refused_by_name(host, untouched, verb, arguments, words):
    with pytest.raises(SurgeryError) as refusal:
        verb(host, **arguments)
    for word in words:
        assert word in str(refusal.value)


def test_an_unknown_init_is_refused(host, untouched):
    with pytest.raises(SurgeryError, match=r"'papr'.*did you mean 'paper'"):
        attn_surgery.apply(host, "se", init="papr")


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))


def quantized() -> nn.Module:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(3, 3, 1))
    model.eval().qconfig = torch.ao.quantization.default_qconfig  # pyright: ignore
    prepared = torch.ao.quantization.prepare(model)
    prepared(torch.randn(1, 3, 4, 4))
    return torch.ao.quantization.convert(prepared)


def distributed() -> nn.Module:
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(torchvision.models.resnet18())
    finally:
        torch.distributed.destroy_process_group()


class Nothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "resnet50", ["torch.nn.Module", "str"]),
        (lambda: torchvision.models.resnet.ResNet, ["torch.nn.Module", "class ResNet"]),
        (scripted, ["ScriptModule", "torch.jit.script"]),
        (lambda: torch.compile(torchvision.models.resnet18()), ["compile", "before"]),
        (quantized, ["int8", "float"]),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), ["lazy", "forward pass"]),
        (distributed, ["DDP", "before wrapping"]),
        (Nothing, ["Nothing", "no residual block", "1 containers"]),
    ],
    ids=["str", "class", "scripted", "compiled", "int8", "lazy", "ddp", "nothing"],
)
def test_hosts_that_cannot_be_operated_on(make, words):
    host = make()
    with pytest.raises(SurgeryError) as refusal:
        attn_surgery.apply(host, "se")
    for word in words:
        assert word in str(refusal.value)


def test_when_everything_is_skipped_the_error_says_why_and_what_to_change(host):
    attn_surgery.apply(host, "se")
    before = fingerprint(host)
    with pytest.raises(SurgeryError, match=r"8 x holds an attention.*existing='stack'"):
        attn_surgery.apply(host, "se")
    assert fingerprint(host) == before


def test_no_residual_block_is_no_error_for_a_plan():
    plan = attn_surgery.plan(Nothing())
    assert (plan.sites, plan.skipped) == ((), ())
    assert "0 sites" in str(plan)


# Failures on the way


class BrokenError(Exception):
    pass


def failing(original, at: int):
    """Make ``original`` raise when it is called for the ``at``-th time."""
    calls = 0

    def run(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at:
            raise BrokenError
        return original(*args, **kwargs)

    return run


@pytest.mark.parametrize("at", [1, 2, 8])
@pytest.mark.parametrize("step", ["_built", "operated_class", "change_class", "remember"])
def test_a_failure_at_any_step_leaves_the_host_as_it_was(host, untouched, monkeypatch, step, at):
    monkeypatch.setattr(editing, step, failing(getattr(editing, step), at))
    with pytest.raises(BrokenError):
        attn_surgery.apply(host, "se")


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (decision, "survey"),
        (rewritten_forwards, "original"),
        (request, "get_builder"),
        (verbs, "check_host"),
        (request, "build"),
    ],
)
def test_a_failure_while_planning_leaves_the_host_as_it_was(
    host, untouched, monkeypatch, module, step
):
    monkeypatch.setattr(module, step, failing(getattr(module, step), 1))
    with pytest.raises(BrokenError):
        attn_surgery.apply(host, "se")


@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_child_that_cannot_be_added_leaves_the_host_as_it_was(host, monkeypatch, at):
    before = fingerprint(host)
    monkeypatch.setattr(nn.Module, "add_module", failing(nn.Module.add_module, at))
    with pytest.raises(BrokenError):
        attn_surgery.apply(host, lambda channels: nn.ReLU(), init="paper")
    monkeypatch.undo()
    assert fingerprint(host) == before


def test_an_attention_that_cannot_be_built_leaves_the_host_as_it_was(host, untouched):
    def build(channels):
        if channels > 64:
            raise ValueError("too wide")
        return nn.ReLU()

    with pytest.raises(SurgeryError, match="too wide"):
        attn_surgery.apply(host, build)


@pytest.mark.parametrize("given", ["resnet18", None, nn.ReLU, {"weight": torch.zeros(1)}], ids=str)
@pytest.mark.parametrize(
    "verb",
    [
        attn_surgery.plan,
        attn_surgery.apply,
        attn_surgery.remove,
        attn_surgery.inserted,
        attn_surgery.report,
        attn_surgery.compile_attention,
        lambda model: attn_surgery.save(model, "file"),
        lambda model: attn_surgery.load(model, "file"),
        lambda model: attn_surgery.switch(model, "file"),
    ],
    ids=["plan", "apply", "remove", "inserted", "report", "compile", "save", "load", "switch"],
)
def test_what_is_no_module_is_refused_by_name(verb, given):
    with pytest.raises(SurgeryError, match=r"must be a torch.nn.Module, not .*pass the model"):
        verb(given)
