"""What comes before anything that trains is computed once, and nothing else comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from finetuning import TINY, tiny, weights, within
from generated import Recipe as Network
from generated import recipes
from hypothesis import given, settings
from test_generated import OFTEN
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.finetune import run_recipe
from attn_surgery.finetune.data import features
from attn_surgery.finetune.recipe import Stage
from attn_surgery.finetune.training import Prefix, choose_trained, find_prefix, keep_statistics
from attn_surgery.finetune.training.watching import tensors

SPARED = {**TINY["data"], "views": 2, "prefix": True}
FROZEN = [{"trains": ["head", "attention"], "epochs": 1, "lr": 0.01}]


def conv(inward: int = 4, outward: int = 4) -> nn.Module:
    return nn.Conv2d(inward, outward, 3, padding=1)


class Host(nn.Module):
    """A stem, a frozen part, a part that trains; ``forward`` puts them together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = conv(3), nn.BatchNorm2d(4), nn.ReLU()
        self.early, self.late = conv(), conv()
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.drop = nn.Dropout(0.5)
        self.requires_grad_(False).late.requires_grad_(True)


class Plain(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.act(self.early(self.act(self.norm(self.stem(x))))))


class InPlace(Host):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        x = self.early(x)
        x += self.scale
        return self.late(x)


class Skips(Host):
    """What comes early is read late, as in a U-Net, beside the images themselves."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        deep = F.max_pool2d(self.early(self.norm(stem)), 2)
        return F.interpolate(self.late(deep), scale_factor=2) + stem + x.mean(1, keepdim=True)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"maps": [x, self.conv(x)], "size": x.shape[-1]}


class ReturnsDict(Host):
    def __init__(self) -> None:
        super().__init__()
        self.nested = Nested().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.nested(self.stem(x))
        return self.late(found["maps"][1]) / found["size"] + found["maps"][0]


class PassesOn(Host):
    """A module returns what it is given, and both names are read."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        same = self.same(stem)
        early = self.early(same)
        self.act(early)
        return self.late(early) + stem + 2 * same


class ReturnsEarly(Host):
    """It returns a map that it made early, as a backbone does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.early(self.stem(x))
        return early, self.late(early)


CALLS = {
    Plain: ["stem", "norm", "act", "early", "act"],
    InPlace: ["stem", "norm", "early"],
    Skips: ["stem", "norm", "early"],
    ReturnsDict: ["stem", "nested"],
    PassesOn: ["stem", "same", "early", "act"],
    ReturnsEarly: ["stem", "early"],
}


def results(model: nn.Module, given: Tensor) -> list[Tensor]:
    """Return what comes out, and the gradients."""
    torch.manual_seed(3)
    model.zero_grad()
    outs = tensors(model(given))
    torch.stack([each.square().sum() for each in outs]).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [each.detach() for each in outs] + grads


def check(model: nn.Module, images: Tensor, tolerance: float = 0.0) -> Prefix:
    """Compare a model on images and on their features; kernels can differ without a gradient."""
    prefix = find_prefix(model, images[:2])
    assert prefix is not None
    forwards = {path: vars(m).get("forward") for path, m in model.named_modules()}
    expected = results(model, images)
    given = prefix.features(model, images)
    assert given.shape == (len(images), prefix.values)
    with prefix.given(model):
        found = results(model, given)
    assert len(found) > 1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert {path: vars(m).get("forward") for path, m in model.named_modules()} == forwards
    assert all(map(torch.equal, results(model, images), expected))
    return prefix


@pytest.mark.parametrize("kind", CALLS)
def test_the_same_from_features(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    prefix = check(kind().eval(), torch.randn(5, 3, 8, 8))
    assert prefix.paths == CALLS[kind]  # type: ignore[index]


def test_of_what_is_returned_that_alone_is_kept_which_is_read() -> None:
    images = torch.randn(3, 3, 8, 8)
    kept = {
        kind: [[call.path, *call.kept] for call in check(kind().eval(), images).calls]
        for kind in (Plain, Skips, ReturnsDict)
    }
    assert kept[Plain] == [
        ["", -1],
        ["stem", -1],
        ["norm", -1],
        ["act", -1],
        ["early", -1],
        ["act", 0],
    ]
    assert kept[Skips] == [["", 0], ["stem", 1], ["norm", -1], ["early", 2]]
    assert kept[ReturnsDict][1:] == [["stem", 0], ["nested", 0, 1, -1]]


def _scaled(host: Host) -> None:
    host.scale.requires_grad_(True)


def _live(host: Host) -> None:
    host.norm.train()


def _nothing(_: Host) -> None:
    """Leave it as it is."""


class Depends(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(self.stem(x) * self.scale))


class Drops(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(F.dropout(self.stem(x), training=self.training)))


class DropsByChild(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(self.drop(self.stem(x))))


class Counts(Host):
    """What it makes of an image is another number each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.late(self.early(self.stem(x) + self.calls))


class Mixes(Host):
    """What comes of an image depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.late(self.early(stem - stem.mean(0)))


class Transposes(Host):
    """The batch is no longer the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Unflatten(0, (1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(self.turn(self.stem(x)).flatten(0, 1)))


class Embeds(Host):
    """A module makes something that no batch has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(8, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        place = self.place(torch.arange(8)).mT[None, :, None]
        return self.late(self.early(self.stem(x) + place))


@pytest.mark.parametrize(
    ("kind", "change", "paths"),
    [
        (Depends, _nothing, ["stem", "early"]),
        (Depends, _scaled, ["stem"]),
        (Plain, _live, ["stem"]),
        (Drops, nn.Module.train, ["stem"]),
        (DropsByChild, nn.Module.train, ["stem"]),
        (Counts, _nothing, ["stem"]),
        (Embeds, _nothing, []),
        (Mixes, _nothing, ["stem"]),
        (Transposes, _nothing, ["stem"]),
    ],
)
def test_it_ends_where_something_is_not_the_same_each_time(
    kind: type[Host], change: Callable[[Host], Any], paths: list[str]
) -> None:
    torch.manual_seed(0)
    host = kind().eval()
    change(host)
    prefix = find_prefix(host, torch.randn(2, 3, 8, 8))
    assert (prefix.paths if prefix is not None else []) == paths


def test_nothing_is_spared_where_the_first_module_trains() -> None:
    host = Plain().eval()
    host.stem.requires_grad_(True)
    assert find_prefix(host, torch.randn(2, 3, 8, 8)) is None
    assert (
        find_prefix(nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1)), torch.ones(2, 3, 4, 4)) is None
    )


def test_a_model_that_takes_another_way_is_told() -> None:
    class Changes(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.drop.training else self.late(self.early(x))

    host = Changes().eval()
    host.drop.train()
    prefix = find_prefix(host, torch.randn(2, 3, 8, 8))
    assert prefix is not None
    host.drop.eval()
    with prefix.given(host), pytest.raises(SurgeryError, match="early was called where stem was"):
        host(torch.zeros(2, prefix.values))


@pytest.mark.parametrize("trains", [("head",), ("head", "attention")])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_timm(name: str, trains: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    last = attn_surgery.plan(model, "cbam").sites[-1].block
    attn_surgery.apply(model, "cbam", where=last)
    stage = Stage(trains=trains)
    model.train()
    choose_trained(model, stage)
    keep_statistics(model, stage, 32)
    prefix = check(model, torch.randn(4, 3, 64, 64), 1e-4)
    assert prefix.values < 3 * 64 * 64


FEW = settings(OFTEN, max_examples=8)


@settings(FEW)
@given(recipes())
def test_generated(network: Network) -> None:
    check_generated(network)


@pytest.mark.slow
@settings(OFTEN, max_examples=500, derandomize=False)
@given(recipes())
def test_many_generated(network: Network) -> None:
    check_generated(network)


def check_generated(network: Network) -> None:
    model, (images, *others) = network.build(), network.inputs()
    sites = attn_surgery.plan(model, "se", existing="stack").sites
    if others or not isinstance(images, Tensor) or not sites or not network.is_copied_whole:
        return
    where = sites[-1].block
    attn_surgery.apply(model, "se", existing="stack", where=lambda site: site.block == where)
    stage = Stage(trains=("attention",))
    model.train(network.host != "fx")
    choose_trained(model, stage)
    keep_statistics(model, stage, 32)
    torch.manual_seed(0)
    if find_prefix(model, images) is not None:
        check(model, images, 1e-5)


# In a recipe


def test_a_run_comes_to_the_same(tmp_path: Path) -> None:
    surgery = {"attention": ["se", "cbam"], "where": ["layer3.0"]}
    changes = {"surgery": surgery, "controls": ["full"], "stages": FROZEN, "pretraining": []}
    for output, data in (("plain", {**SPARED, "prefix": False}), ("spared", SPARED)):
        run_recipe(tiny(tmp_path / output, data=data, **changes))
    plain, spared = (weights(tmp_path / output) for output in ("plain", "spared"))
    assert plain.keys() == spared.keys()
    for name, each in plain.items():
        for key, value in each.items():
            torch.testing.assert_close(spared[name][key], value, rtol=1e-4, atol=1e-5)
    # one for both attentions, whose prefix is the same; none where everything trains
    assert len([*(tmp_path / "spared/features").glob("*.npy")]) == 1


@pytest.mark.slow
def test_features_are_read_from_their_file(tmp_path: Path, monkeypatch: Any) -> None:
    changes = {"surgery": {"attention": ["se"]}, "controls": [], "control": False, "stages": FROZEN}
    run_recipe(tiny(tmp_path, data=SPARED, **changes))
    (tmp_path / "seed0/se/metrics.json").unlink()
    monkeypatch.setattr(features, "_write", lambda *_: pytest.fail("it is computed again"))
    run_recipe(tiny(tmp_path, data=SPARED, **changes))
    with pytest.raises(pytest.fail.Exception):
        run_recipe(tiny(tmp_path, data=SPARED, seeds=2, **changes))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: Any) -> None:
    changes = {"surgery": {"attention": ["se"]}, "stages": FROZEN}
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SurgeryError, match=r"take 0\.0 GB, .* has 0\.0: lower data\.views"):
        run_recipe(tiny(tmp_path, data=SPARED, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": within("data", prefix=True)}, "data.prefix is of a fixed number of views"),
        ({"data": SPARED}, "mixup, cutmix and distill_weight need images"),
    ],
)
def test_what_it_does_not_go_with(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SurgeryError, match=told):
        run_recipe(tiny(tmp_path, **changes))
