"""``existing="replace"``: a host's attention goes, another comes, ``remove`` brings it back."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hosts_with_attention as hosts
import pytest
import timm
import torch
import torchvision
from hosts_with_attention import WIDTH, Net, images
from test_undisturbed import makeup
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.attention import build
from attn_surgery.surgery import edits as editing
from attn_surgery.surgery import verbs as surgery


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def replace(model: nn.Module, attention: Any = "se", **more: Any) -> nn.Module:
    return attn_surgery.apply(model, attention, existing="replace", **more)


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


# The libraries' models

# name -> classes of the old attention, how many there are, sites without any
LIBRARY: dict[str, tuple[str, int, int]] = {
    "torchvision/mobilenet_v3_large": ("SqueezeExcitation", 8, 5),
    "torchvision/mobilenet_v3_small": ("SqueezeExcitation", 9, 1),
    "torchvision/efficientnet_b0": ("SqueezeExcitation", 16, 0),
    "torchvision/regnet_y_400mf": ("SqueezeExcitation", 16, 0),
    "timm/regnety_004": ("SEModule", 16, 0),
    "timm/seresnet50": ("SEModule", 16, 0),
    "timm/mobilenetv3_large_100": ("SqueezeExcite", 8, 5),
    "timm/efficientnet_b0": ("SqueezeExcite", 16, 0),
    "timm/ecaresnet26t": ("EcaModule", 8, 0),
    "timm/gcresnext26ts": ("GlobalContext", 8, 0),
    "timm/eca_vovnet39b": ("EcaModule", 4, 0),
    "timm/legacy_seresnet18": ("SEModule", 8, 0),
    "timm/ghostnet_050": ("SqueezeExcite", 7, 7),
    "timm/eca_nfnet_l0": ("EcaModule", 12, 0),
    "timm/rexnet_100": ("SEModule", 13, 0),
    "timm/ese_vovnet39b": ("EffectiveSEModule", 4, 0),
}
OPTIONED: dict[str, tuple[str, dict[str, Any], str]] = {
    layer: ("resnet26", {"block_args": {"attn_layer": layer}}, name)
    for layer, name in {
        "cbam": "CbamModule",
        "lcbam": "LightCbamModule",
        "gc": "GlobalContext",
        "gca": "GlobalContext",
        "ese": "EffectiveSEModule",
        "ceca": "CecaModule",
        "coord": "CoordAttn",
        "strip": "StripAttn",
    }.items()
}
FAST = """
    torchvision/mobilenet_v3_small torchvision/mobilenet_v3_large torchvision/efficientnet_b0
    timm/regnety_004 timm/seresnet50 timm/ecaresnet26t timm/ghostnet_050
""".split()


def library_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, arch = name.partition("/")
    model = timm.create_model(arch) if library == "timm" else torchvision.models.get_model(arch)
    return model.eval()


def library_cases() -> list[Any]:
    return [
        pytest.param(name, *expected, marks=() if name in FAST else pytest.mark.slow, id=name)
        for name, expected in LIBRARY.items()
    ]


@pytest.mark.parametrize(("name", "old", "there", "absent"), library_cases())
def test_every_attention_of_a_library_model(name: str, old: str, there: int, absent: int) -> None:
    model = library_model(name)
    check_replaced(model, old, there, absent, torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize("layer", [*OPTIONED])
def test_every_attention_of_timm_in_a_resnet(layer: str) -> None:
    torch.manual_seed(0)
    arch, options, old = OPTIONED[layer]
    try:
        model = timm.create_model(arch, num_classes=5, **options).eval()
    except (AssertionError, TypeError) as error:
        pytest.skip(f"this timm: {error}")
    check_replaced(model, old, 8, 0, torch.randn(1, 3, 64, 64))


def check_replaced(model: nn.Module, old: str, there: int, absent: int, x: Tensor) -> None:
    base, expected, before = count(model), run(model, x), makeup(model)
    former = [each for each in model.modules() if type(each).__name__ == old]
    own = {id(p) for each in former for p in each.parameters()}
    assert len(former) == there
    plan = attn_surgery.plan(model, "se", existing="replace")
    assert sum(site.existing is not None for site in plan.sites) == there
    assert sum(site.existing is None for site in plan.sites) == absent
    replace(model)
    assert not any(type(each).__name__ == old for each in model.modules())
    assert not any(id(p) in own for p in model.parameters())
    new = [build("se", site.channels or 0) for site in plan.sites]
    assert count(model) == base - sum(map(count, former)) + sum(map(count, new))
    assert len(attn_surgery.inserted(model)) == there + absent
    assert run(model, x).isfinite().all()
    attn_surgery.remove(model)
    assert makeup(model) == before
    assert torch.equal(run(model, x), expected)


def test_the_numbers_of_the_issue() -> None:
    """MobileNetV3-Large: 8 squeeze-and-excites go, 8 with reduction 16 and 5 new ones come."""
    model = library_model("torchvision/mobilenet_v3_large")
    held = (72, 120, 120, 480, 672, 672, 960, 960)
    squeezed = (24, 32, 32, 120, 168, 168, 240, 240)
    old = sum(2 * c * s + c + s for c, s in zip(held, squeezed, strict=True))
    new = sum(2 * c * max(c // 16, 1) + c + max(c // 16, 1) for c in (*held, 16, 24, 80, 80, 80))
    assert count(model) == 5_483_032
    assert count(replace(model)) == 5_483_032 - old + new == 4_353_869


def test_what_a_former_attention_did_is_undone() -> None:
    """The identity start stands for no attention, not for the old one."""
    torch.manual_seed(0)
    model, x = Net(hosts.OwnModule).eval(), images()
    bare = copy.deepcopy(model)
    for block in bare.body:
        block.se = nn.Identity()
    assert torch.equal(run(replace(model), x), run(bare, x))


# All spellings

SPELLINGS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    **{
        make.__name__: (make, method, per_block)
        for make, method, per_block in (
            (hosts.OwnModule, "swap", 1),
            (hosts.OwnLinear, "swap", 1),
            (hosts.OwnInPlace, "swap", 1),
            (hosts.InSequential, "swap", 1),
            (hosts.FirstInSequential, "swap", 1),
            (hosts.InMiddle, "swap", 1),
            (hosts.TwoAttentions, "swap", 2),
            (hosts.Cbam, "swap", 1),
            (hosts.Apart, "swap", 2),
            (hosts.NoShortcut, "swap", 1),
            (hosts.WithMode, "swap", 1),
            (hosts.ChildGate, "rewrite", 1),
            (hosts.GateFirst, "rewrite", 1),
            (hosts.ChildGateInPlace, "rewrite", 1),
            (hosts.ChildGateMulInPlace, "rewrite", 1),
            (hosts.SpelledOut, "rewrite", 1),
            (hosts.GateInSequential, "rewrite", 1),
            (hosts.HardSigmoidBySix, "rewrite", 1),
            (hosts.NoShortcutSpelledOut, "rewrite", 1),
            (hosts.SpelledOutWithMode, "rewrite", 1),
        )
    }
}
spellings = pytest.mark.parametrize("spelling", SPELLINGS)


def net(spelling: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(SPELLINGS[spelling][0]).eval()


def own_attention(model: nn.Module) -> set[int]:
    """Return the parameters of what is no convolution of the branch, norm, stem or head."""
    kept = ("stem", "head", "conv1", "conv2", "bn1", "bn2")
    known = {"body.0.body.0", "body.0.body.1", "body.0.body.2", "body.0.body.4", "body.0.body.5"}
    found = set()
    for name, each in model.named_parameters():
        path = name.rpartition(".")[0].replace("body.1", "body.0", 1)
        is_kept = path.rpartition(".")[2] in kept or path in known
        if not is_kept or "body.0.body.0.fc" in path:
            found.add(id(each))
    return found


@spellings
def test_nothing_is_left_and_all_comes_back(spelling: str) -> None:
    _, method, per_block = SPELLINGS[spelling]
    model, x = net(spelling), images()
    expected, before, old = run(model, x), makeup(model), own_attention(model)
    assert old
    plan = attn_surgery.plan(model, "eca", existing="replace")
    assert [site.method for site in plan.sites] == [method] * 2 * per_block
    assert [site.channels for site in plan.sites] == [WIDTH] * 2 * per_block
    assert makeup(model) == before
    replace(model, "eca")
    assert not any(id(each) in old for each in model.parameters())
    kept = sum(each.numel() for each in model.parameters()) - sum(
        map(count, attn_surgery.inserted(model).values())
    )
    assert kept == sum(
        each.numel() for each in before.tensors.values() if isinstance(each, nn.Parameter)
    ) - sum(each.numel() for each in before.tensors.values() if id(each) in old)
    attn_surgery.remove(model)
    assert makeup(model) == before
    assert torch.equal(run(model, x), expected)


@pytest.mark.parametrize(
    "spelling",
    [
        *SPELLINGS,
    ],
)
def test_the_new_attention_works(spelling: str) -> None:
    """It has a gradient, and what it does is seen at the output."""
    model, x = replace(net(spelling).train(), init="paper"), images()
    model(x).square().sum().backward()
    attentions = attn_surgery.inserted(model)
    for path, each in attentions.items():
        assert any(p.grad is not None and p.grad.any() for p in each.parameters()), path
    first = run(model.eval(), x)
    with torch.no_grad():
        for each in attentions.values():
            each.get_parameter("fc2.bias").fill_(-3.0)
    assert not torch.equal(run(model, x), first)


@spellings
def test_copies_and_files(spelling: str) -> None:
    model, x = net(spelling), images()
    expected, keys = run(model, x), list(model.state_dict())
    replaced = run(replace(model, init="paper"), x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for each in (*copies, model):
        assert torch.equal(run(each, x), replaced)
        attn_surgery.remove(each)
        assert list(each.state_dict()) == keys
        assert torch.equal(run(each, x), expected)


@pytest.mark.sampled(3)
@spellings
def test_script_and_export(spelling: str) -> None:
    model, x = replace(net(spelling), init="paper"), images()
    expected = run(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(run(exported, x), expected, atol=1e-6)
    if "super()" in source(model):
        return  # nor can the host be scripted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), expected)


def source(model: nn.Module) -> str:
    return "super()" if any(type(each) is hosts.Excite for each in model.modules()) else ""


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["OwnModule", "ChildGate"])
def test_compile(spelling: str) -> None:
    model, x = replace(net(spelling), init="paper"), images()
    assert torch.allclose(torch.compile(model)(x), run(model, x), atol=1e-5)


@spellings
def test_replacing_what_was_put_in(spelling: str) -> None:
    model, x = net(spelling), images()
    expected, before = run(model, x), makeup(model)
    first = list(attn_surgery.inserted(replace(model)))
    second = attn_surgery.inserted(replace(model, "eca"))
    assert list(second) == first
    assert all("Eca" in str(each) for each in second.values())
    attn_surgery.remove(model)
    assert makeup(model) == before
    assert torch.equal(run(model, x), expected)


@pytest.mark.parametrize(
    "spelling",
    [
        "OwnModule",
        "ChildGate",
    ],
)
def test_a_copy_of_what_was_replaced_twice(spelling: str) -> None:
    model, x = net(spelling), images()
    expected = run(model, x)
    twin = copy.deepcopy(replace(replace(model), "eca"))
    assert torch.equal(run(twin, x), run(model, x))
    assert torch.equal(run(attn_surgery.remove(twin), x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_leaves_the_original_alone(copied: Any) -> None:
    """An attention that ``apply`` put in beside nothing is replaced, and the model copied."""
    model, x = attn_surgery.apply(Net(hosts.LayerScale).eval(), "se"), images()
    replace(model, "eca", init="paper")
    expected = run(model, x)
    copied(model)
    assert torch.equal(run(model, x), expected)


def test_an_attribute_is_set_after_replacing_what_was_put_in() -> None:
    model = replace(attn_surgery.apply(Net(hosts.LayerScale).eval(), "se"), "eca")
    model.body[0].gamma = nn.Parameter(torch.ones(WIDTH, 1, 1))  # pyright: ignore
    run(model, images())


def test_an_attention_that_worked_in_place_and_returned_to_nobody() -> None:
    model = Net(hosts.InPlaceUnreturned).train()
    if not attn_surgery.plan(model, "se", existing="replace").sites:
        return
    replace(model)(images()).square().sum().backward()
    for each in attn_surgery.inserted(model).values():
        assert any(p.grad is not None and p.grad.any() for p in each.parameters())


def test_a_gate_of_parameters_of_the_block() -> None:
    model = Net(hosts.ParameterGate)
    model.body[1] = hosts.OwnModule()
    replace(model)
    assert list(attn_surgery.inserted(model)) == ["body.1.se"]


def test_a_gate_of_parameters_leaves_the_host_untouched() -> None:
    model = Net(hosts.ParameterGate)
    before = makeup(model)
    with pytest.raises(SurgeryError):
        replace(model)
    assert makeup(model) == before


@pytest.mark.parametrize("spelling", ["OwnModule", "ChildGate"])
def test_moves_and_training_in_between(spelling: str) -> None:
    model, x = net(spelling), images()
    expected = run(model, x)
    replace(model)
    first, *_ = attn_surgery.inserted(model).values()
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    model(x).sum().backward()
    optimizer.step()
    model.double()
    assert {each.dtype for each in attn_surgery.remove(model).parameters()} == {torch.float64}
    assert torch.allclose(run(model, x.double()).float(), expected, atol=1e-5)
    replace(model.float()).train()
    attn_surgery.remove(model)
    assert all(each.training for each in model.modules())
    assert torch.equal(run(model.eval(), x), expected)


@pytest.mark.parametrize("spelling", ["OwnModule", "ChildGate"])
def test_moves_while_an_attention_without_parameters_is_in(spelling: str) -> None:
    model, x = replace(net(spelling), "simam", init="paper"), images()
    attn_surgery.remove(model.double())
    run(model, x.double())


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (hosts.shared, "is shared"),
        (lambda: hosts.traced(hosts.OwnModule), "part of its own graph"),
        (lambda: hosts.traced(hosts.ChildGate), "part of its own graph"),
        (lambda: Net(hosts.LoopingGate), "cannot be replaced"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_cannot_be_replaced_says_why(host: Callable[[], nn.Module], reason: str) -> None:
    model = host().eval()
    before, expected = makeup(model).keys, run(model, images())
    plan = attn_surgery.plan(model, "se", existing="replace")
    assert plan.sites == ()
    assert any(reason in site.reason for site in plan.skipped)
    with pytest.raises(SurgeryError, match=reason):
        replace(model)
    assert makeup(model).keys == before
    assert torch.equal(run(model, images()), expected)


@pytest.mark.parametrize(
    "block",
    [
        hosts.Glu,
        hosts.SwishSpelledOut,
        hosts.Grn,
        hosts.OwnNorm,
        hosts.LayerScale,
        hosts.SoftmaxPooling,
    ],
)
def test_what_is_no_attention_stays(block: type[nn.Module]) -> None:
    model = Net(block)
    plan = attn_surgery.plan(model, "se", existing="replace")
    assert [site.existing for site in (*plan.sites, *plan.skipped) if site.existing] == []
    if plan.sites:
        before = {id(each) for each in model.parameters()}
        assert before <= {id(each) for each in replace(model).parameters()}


@pytest.mark.parametrize("spelling", ["OwnModule", "ChildGate", "TwoAttentions", "InSequential"])
@pytest.mark.parametrize("step", ["_built", "_prepare", "carry_out", "stand_for"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_at_any_step_leaves_the_host_untouched(
    spelling: str, step: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = net(spelling), images()
    expected, before = run(model, x), makeup(model)
    with monkeypatch.context() as patch:
        home = surgery if step == "carry_out" else editing
        patch.setattr(home, step, failing_at(nth, getattr(home, step)))
        with pytest.raises(RuntimeError, match="injected"):
            replace(model)
    assert makeup(model) == before
    assert not attn_surgery.inserted(model)
    assert torch.equal(run(model, x), expected)
    attn_surgery.remove(replace(model))
    assert makeup(model) == before


@pytest.mark.parametrize("step", ["take_out", "change_class"])
def test_a_failure_in_the_second_block(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block has been changed by then."""
    model, x = net("ChildGate"), images()
    expected, before = run(model, x), makeup(model)
    monkeypatch.setattr(editing, step, failing_at(2, getattr(editing, step)))
    with pytest.raises(RuntimeError, match="injected"):
        replace(model)
    assert makeup(model) == before
    assert torch.equal(run(model, x), expected)


def failing_at(nth: int, real: Any) -> Any:
    calls = iter(range(1, 1000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise RuntimeError("injected")
        return real(*args, **kwargs)

    return failing


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_attention_is_not_looked_into() -> None:
    plan = attn_surgery.plan(hosts.scripted(), "se", existing="replace")
    assert [(site.existing, site.method) for site in plan.sites] == [(None, "rewrite")] * 2
