"""A plan is data: mixed, printed, kept, replayed on another instance, refused elsewhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from test_undisturbed import makeup
from torch import Tensor, fx, nn
from versions import skip_younger_attention

import attn_surgery
from attn_surgery import Plan, SurgeryError
from attn_surgery.planning.sites import Assignment, Site
from attn_surgery.planning.where import Choice, every, last_of_stage, matching, min_channels, stage

MIXED: dict[str, Any] = {
    "layer1.*": ("se", {"reduction": 8}),
    "layer[23].*": ("eca", {"kernel_size": 5}),
    "layer4.1": "cbam",
}


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=5).eval()


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=5).eval()


@pytest.fixture(scope="module")
def mixed() -> Plan:
    return attn_surgery.plan(resnet18(), MIXED)


# Mixed surgery


def test_each_pattern_has_options_of_its_own(mixed: Plan) -> None:
    assert [str(each) for each in mixed.assignments] == [
        *["se(reduction=8)"] * 2,
        *["eca(kernel_size=5)"] * 4,
        "cbam",
    ]
    assert [site.block for site in mixed.skipped] == ["layer4.0"]
    assert "no pattern" in mixed.skipped[0].reason


def test_a_printed_plan_shows_the_options(mixed: Plan) -> None:
    lines = {line.split("  ")[0]: line for line in mixed.text().splitlines()}
    assert lines["layer1.0 to layer1.1"].endswith("se(reduction=8)")
    assert lines["layer2.0 to layer2.1"].endswith("eca(kernel_size=5)")
    assert lines["layer4.1"].endswith("cbam")


# Folding


def shown(plan: Plan, *, fold: bool = True) -> list[str]:
    """Return the first cells of the rows of a printed plan."""
    lines = plan.text(fold=fold).splitlines()
    return [line.split("  ")[0] for line in lines if "  " in line][2:]


def site(block: str, **more: Any) -> Site:
    about = {"block_type": "Block", "after": "bn2", "channels": 8, "method": "rewrite"}
    return Site(block=block, spatial_dims=2, existing=None, **{**about, **more})


def plan_of(*sites: Site) -> Plan:
    return Plan(sites, (), (Assignment("se"),) * len(sites))


@pytest.mark.parametrize(
    ("blocks", "folded"),
    [
        (["a.0", "a.1", "a.2", "b.0"], ["a.0 to a.2", "b.0"]),
        (["a.8", "a.9", "a.10", "a.11"], ["a.8 to a.11"]),
        (["a.0", "a.2", "a.3"], ["a.0", "a.2 to a.3"]),
        (["a.1", "a.0"], ["a.1", "a.0"]),
        (["a.0", "a.0"], ["a.0", "a.0"]),
        (["a.1.0", "a.2.0"], ["a.1.0", "a.2.0"]),
        (["a1.unit1", "a1.unit2", "a2.unit3"], ["a1.unit1 to a1.unit2", "a2.unit3"]),
        (["a.0.conv2d", "a.1.conv2d"], ["a.0.conv2d to a.1.conv2d"]),
        (["a.0.conv2d", "a.0.conv3d"], ["a.0.conv2d", "a.0.conv3d"]),
        (["", "a"], ["(the host)", "a"]),
    ],
)
def test_a_run_is_of_blocks_with_the_next_index(blocks: list[str], folded: list[str]) -> None:
    plan = plan_of(*map(site, blocks))
    assert shown(plan) == folded
    assert shown(plan, fold=False) == [block or "(the host)" for block in blocks]


@pytest.mark.parametrize(
    "difference",
    [{"after": "bn3"}, {"channels": 16}, {"block_type": "Other"}, {"method": "attach"}],
)
def test_what_differs_in_anything_that_is_shown_is_not_folded(difference: dict[str, Any]) -> None:
    plan = plan_of(site("a.0"), site("a.1", **difference), site("a.2"))
    assert shown(plan) == ["a.0", "a.1", "a.2"]


def test_the_skipped_are_folded_by_reason() -> None:
    reasons = ["no way in", "no way in", "not selected by where"]
    skipped = [site(f"a.{i}", method="", reason=reason) for i, reason in enumerate(reasons)]
    plan = Plan((), tuple(skipped))
    assert shown(plan) == ["a.0 to a.1", "a.2"]
    assert shown(plan, fold=False) == ["a.0", "a.1", "a.2"]


def test_the_modules_have_their_options() -> None:
    found = attn_surgery.inserted(attn_surgery.apply(resnet18(), MIXED))
    assert found["layer1.0.attn"].get_parameter("fc1.weight").shape[0] == 64 // 8
    convs = [each for each in found["layer2.0.attn"].modules() if isinstance(each, nn.Conv1d)]
    assert [each.kernel_size for each in convs] == [(5,)]
    assert "layer4.0.attn" not in found


def test_options_of_the_call_are_the_default_of_those_of_a_pattern() -> None:
    mixture: dict[str, Any] = {"layer1.*": ("se", {"reduction": 8}), "*": "se"}
    plan = attn_surgery.plan(resnet18(), mixture, reduction=4, bias=False)
    assert plan.assignments[0].options == {"reduction": 8, "bias": False}
    assert plan.assignments[-1].options == {"reduction": 4, "bias": False}


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({}, "names no attention"),
        ({"layer9.*": "se"}, "layer9"),
        ({"layer1.*": ("se", {"nonsense": 1})}, "nonsense"),
        ({"layer1.*": ("se", 8)}, "no attention with options"),
        ({"layer1.*": ("se",)}, "no attention with options"),
        ({"layer1.*": ("sea", {})}, "unknown attention"),
    ],
)
def test_a_mixture_that_is_not_understood(attention: Any, message: str) -> None:
    host = resnet18()
    before = makeup(host)
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.apply(host, attention)
    assert makeup(host) == before


# Kept and replayed

REQUESTS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "standard": (resnet18, "cbam", {"reduction": 4}),
    "mixed": (resnet18, MIXED, {}),
    "pre": (resnet18, "se", {"position": "pre"}),
    "post": (resnet18, "se", {"position": "post", "where": last_of_stage()}),
    "identity": (resnet18, "se", {"position": "identity"}),
    "mid": (mobilenet, "se", {"position": "mid", "existing": "stack"}),
    "replace": (mobilenet, "coord", {"existing": "replace"}),
    "mixed replace": (
        mobilenet,
        {"features.1": ("se", {"bias": False}), "*": "eca"},
        {"existing": "replace"},
    ),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_plan_from_a_file_is_the_same_and_does_the_same(request_name: str, tmp_path: Path):
    build, attention, more = REQUESTS[request_name]
    skip_younger_attention(attention)
    plan = attn_surgery.plan(build(), attention, **more)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert str(loaded) == str(plan)
    first, second = build(), build()
    attn_surgery.apply(first, attention, **more)
    before = makeup(second)
    attn_surgery.apply(second, loaded)
    one, other = attn_surgery.inserted(first), attn_surgery.inserted(second)
    assert list(one) == list(other)
    assert [str(each) for each in one.values()] == [str(each) for each in other.values()]
    randomise(first)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    attn_surgery.remove(second)
    assert makeup(second).keys == before.keys
    assert makeup(second).classes == before.classes


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for each in attn_surgery.inserted(model).values():
            for parameter in each.parameters():
                parameter.normal_(std=0.3)


def test_planning_by_a_plan_gives_the_plan(mixed: Plan) -> None:
    assert attn_surgery.plan(resnet18(), mixed) == mixed
    some = attn_surgery.plan(resnet18(), mixed, where="layer1.*")
    assert some.sites == mixed.sites[:2]


def test_a_plan_is_carried_out_as_it_was_made(mixed: Plan) -> None:
    for more in ({"position": "pre"}, {"existing": "stack"}, {"reduction": 4}):
        with pytest.raises(SurgeryError, match="as it was made"):
            attn_surgery.plan(resnet18(), mixed, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet50,
        torchvision.models.mobilenet_v2,
        lambda: torchvision.models.resnet18(norm_layer=nn.Identity),
        torchvision.models.resnet34,
    ],
)
def test_another_host_is_refused(mixed: Plan, build: Callable[[], nn.Module]) -> None:
    host = build()
    before = makeup(host)
    try:
        with pytest.raises(SurgeryError, match="another host"):
            attn_surgery.apply(host, mixed)
    finally:
        attn_surgery.remove(host)
    assert makeup(host) == before


def test_a_plan_is_not_carried_out_twice(mixed: Plan) -> None:
    host = attn_surgery.apply(resnet18(), mixed)
    before = makeup(host)
    held = r"that 'layer1.0' holds is attn, and was none .* call attn_surgery.remove first"
    with pytest.raises(SurgeryError, match=held):
        attn_surgery.apply(host, mixed)
    assert makeup(host) == before


def test_what_another_host_differs_in_is_said(mixed: Plan) -> None:
    elsewhere = "has a site in 'layer1.0' after 'bn2', here there is one after 'bn3'"
    with pytest.raises(SurgeryError, match=elsewhere):
        attn_surgery.apply(torchvision.models.resnet50(), mixed)
    with pytest.raises(SurgeryError, match=r"says nothing of 'layer1.2', which has a site here"):
        attn_surgery.apply(torchvision.models.resnet34(), mixed)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def alter(data: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            data = data[int(step) if step.isdigit() else step]
        data[last] = value

    return alter


ALTERED = {
    "channels": put("sites.0.channels", 32),
    "channels as text": put("sites.0.channels", "64"),
    "dims": put("sites.0.spatial_dims", 3),
    "block": put("sites.0.block", "layer9.0"),
    "after": put("sites.0.after", "bn1"),
    "position": put("position", "pre"),
    "no position": put("position", "between"),
    "no word": put("existing", ["skip"]),
    "attention": put("assignments.0.attention", "nonsense"),
    "attention is a list": put("assignments.0.attention", ["se"]),
    "option": put("assignments.0.options", {"nonsense": 1}),
    "value of an option": put("assignments.0.options", {"reduction": "eight"}),
    "one assignment less": lambda data: data["assignments"].pop(),
    "no sites": put("sites", None),
    "a number for a site": put("sites", [3]),
    "unknown field of a site": put("sites.0.nonsense", 3),
    "options are a number": put("assignments.0.options", 3),
    "block type": put("sites.0.block_type", "Bottleneck"),
    "method": put("sites.0.method", "attach"),
    "site twice": lambda data: [
        data[each].append(data[each][0]) for each in ("sites", "assignments")
    ],
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_plan_is_refused(mixed: Plan, alter: Callable[[Any], Any]) -> None:
    host, data = resnet18(), copy.deepcopy(mixed.to_dict())
    alter(data)
    before = makeup(host)
    try:
        with pytest.raises(SurgeryError):
            attn_surgery.apply(host, Plan.from_dict(data))
    finally:
        attn_surgery.remove(host)
    assert makeup(host) == before


@pytest.mark.parametrize("text", ["", "[]", "null", '{"sites": []}', "3", "{", "\x00"])
def test_a_file_that_holds_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(SurgeryError, match="plan"):
        Plan.load(path)


@pytest.mark.parametrize("path", ["nonesuch.json", "."])
def test_a_file_that_is_none(tmp_path: Path, path: str) -> None:
    with pytest.raises(SurgeryError, match="cannot read"):
        Plan.load(tmp_path / path)


def mine(channels: int) -> nn.Module:
    return nn.Sigmoid()


def se(channels: int) -> nn.Module:
    """A builder of the user's, who did not register it."""
    return nn.Sigmoid()


@pytest.mark.parametrize(
    "builder",
    [
        mine,
        se,
    ],
)
def test_a_plan_with_a_callable_is_not_replayed(builder: Any) -> None:
    plan = attn_surgery.plan(resnet18(), builder)
    with pytest.raises(SurgeryError):
        attn_surgery.apply(resnet18(), plan)


def test_an_option_that_is_a_tuple() -> None:
    plan = attn_surgery.plan(resnet18(), "cbam", pools=("avg",))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_an_option_that_is_no_data_cannot_be_written(tmp_path: Path) -> None:
    plan = attn_surgery.plan(resnet18(), "eca", act_layer=nn.ReLU)
    with pytest.raises(SurgeryError, match="cannot be written"):
        plan.save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


# Which sites

RESNET50 = {1: 3, 2: 4, 3: 6, 4: 3}
CONVNEXT = {1: (1, 3), 2: (3, 3), 3: (5, 9), 4: (7, 3)}


def blocks(stages: dict[str, int], first: int = 0) -> list[list[str]]:
    return [[f"{name}.{i}" for i in range(first, first + n)] for name, n in stages.items()]


# name, how it is planned -> the blocks of each stage, by hand from the papers' tables
STAGES: list[tuple[str, dict[str, Any], list[list[str]]]] = [
    ("torchvision/resnet50", {}, blocks({f"layer{i}": n for i, n in RESNET50.items()})),
    (
        "torchvision/fasterrcnn_resnet50_fpn",
        {},
        blocks({f"backbone.body.layer{i}": n for i, n in RESNET50.items()}),
    ),
    (
        "torchvision/convnext_tiny",
        {},
        blocks({f"features.{i}": n for i, n in CONVNEXT.values()}),
    ),
    (
        "timm/convnext_tiny",
        {},
        blocks({f"stages.{i - 1}.blocks": n for i, (_, n) in CONVNEXT.items()}),
    ),
    (
        "torchvision/mobilenet_v2",
        {},
        [[f"features.{i}" for i in each] for each in ([3], [5, 6], [8, 9, 10], [12, 13], [15, 16])],
    ),
    (
        "timm/mobilenetv2_100",
        {},
        [
            [f"blocks.{i}.{j}" for j in range(1, n)]
            for i, n in enumerate([1, 2, 3, 4, 3, 3, 1])
            if n > 1
        ],
    ),
    (
        "torchvision/efficientnet_b0",
        {"existing": "replace"},
        blocks({f"features.{i + 1}": n for i, n in enumerate([1, 2, 2, 3, 3, 4, 1])}),
    ),
    (
        "timm/efficientnet_b0",
        {"existing": "replace"},
        blocks({f"blocks.{i}": n for i, n in enumerate([1, 2, 2, 3, 3, 4, 1])}),
    ),
    (
        "timm/efficientnet_b0",
        {"existing": "stack"},
        [
            [f"blocks.{i}.{j}" for j in range(1, n)]
            for i, n in enumerate([1, 2, 2, 3, 3, 4, 1])
            if n > 1
        ],
    ),
    (
        "torchvision/regnet_y_400mf",
        {"existing": "stack"},
        [
            [f"trunk_output.block{i}.block{i}-{j}" for j in range(n)]
            for i, n in enumerate([1, 3, 6, 6], 1)
        ],
    ),
    (
        "timm/regnety_004",
        {"existing": "replace"},
        [[f"s{i}.b{j + 1}" for j in range(n)] for i, n in enumerate([1, 3, 6, 6], 1)],
    ),
    (
        "torchvision/mobilenet_v3_large",
        {"existing": "stack"},
        [
            [f"features.{i}" for i in each]
            for each in ([1], [3], [5, 6], [8, 9, 10], [12], [14, 15])
        ],
    ),
    (
        "torchvision/mobilenet_v3_large",
        {"existing": "replace"},
        [
            [f"features.{i}" for i in each]
            for each in ([1], [3], [4, 5, 6], [8, 9, 10], [11, 12], [13, 14, 15])
        ],
    ),
]
"""The maps of the attention are told apart by their width, and not those of the blocks."""


def model(name: str) -> nn.Module:
    library, _, arch = name.partition("/")
    if library == "timm":
        return timm.create_model(arch)  # 1.0.20 builds few on the meta device
    bare = {"weights": None} | ({"weights_backbone": None} if "rcnn" in arch else {})
    return torchvision.models.get_model(arch, **bare)


def stage_cases() -> list[Any]:
    found = []
    for name, more, expected in STAGES:
        how = more.get("existing", "skip")
        found.append(pytest.param(name, more, expected, id=f"{name}-{how}"))
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "more", "expected"), stage_cases())
def test_stages(name: str, more: dict[str, Any], expected: list[list[str]]) -> None:
    host = model(name)

    def chosen(where: Choice) -> list[str]:
        return [site.block for site in attn_surgery.plan(host, "se", where=where, **more).sites]

    assert [chosen(stage(i + 1)) for i in range(len(expected))] == expected
    with pytest.raises(SurgeryError, match=f"no stage {len(expected) + 1}"):
        chosen(stage(len(expected) + 1))
    flat = [block for each in expected for block in each]
    assert chosen(last_of_stage()) == [each[-1] for each in expected]
    assert chosen(every(3)) == flat[2::3]
    assert chosen(~last_of_stage()) == [block for each in expected for block in each[:-1]]
    assert chosen(stage(2) | matching(expected[0][0])) == [expected[0][0], *expected[1]]
    assert chosen(stage(1, 2) & last_of_stage()) == [expected[0][-1], expected[1][-1]]


@pytest.mark.parametrize(
    ("name", "channels", "first"),
    [
        ("torchvision/resnet50", 512, "layer2.0"),
        ("torchvision/mobilenet_v2", 96, "features.12"),
        ("torchvision/convnext_tiny", 193, "features.5.0"),
    ],
)
def test_min_channels(name: str, channels: int, first: str) -> None:
    plan = attn_surgery.plan(model(name), "se", where=min_channels(channels))
    assert plan.sites[0].block == first
    assert all((site.channels or 0) >= channels for site in plan.sites)
    assert all((site.channels or 0) < channels for site in plan.skipped)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.0, "1", None])
@pytest.mark.parametrize("choice", [stage, every, min_channels])
def test_numbers_that_are_none(choice: Any, wrong: Any) -> None:
    with pytest.raises(SurgeryError, match="whole number"):
        choice(wrong)


@pytest.mark.parametrize(
    "where", [matching(), matching("nonesuch"), min_channels(10_000), every(99)]
)
def test_a_choice_of_nothing_is_refused(where: Choice) -> None:
    host = resnet18()
    before = makeup(host)
    with pytest.raises(SurgeryError, match="selects no site"):
        attn_surgery.apply(host, "se", where=where)
    assert makeup(host) == before


# Attention that is there already


class Residual(nn.Module):
    """Attention with an addition of its own that looks like a block's."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x))


class Unfollowed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() != 0 else x + self.conv(x)


@pytest.mark.parametrize("attention", ["eca", Residual, Unfollowed])
@pytest.mark.parametrize("as_graph", [False, True])
def test_what_was_inserted_is_no_place_for_more(attention: Any, as_graph: bool) -> None:
    host: nn.Module = torchvision.models.resnet18().eval()
    if as_graph:
        host = fx.symbolic_trace(host)
    before = attn_surgery.plan(host, "se")
    attn_surgery.apply(host, attention)
    for existing in ("stack", "replace"):
        after = attn_surgery.plan(host, "se", existing=existing)
        assert (len(after.sites), after.skipped) == (len(before.sites), before.skipped)
