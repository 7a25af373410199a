"""Images of several kinds, views that are kept, images held out, seeds that are fresh."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data.batches import Loading, train_batches, val_batches
from attn_surgery.finetune.data.datasets import open_source
from attn_surgery.finetune.data.domains import CONTRAST, DOMAINS, NOISE, drawn_domain
from attn_surgery.finetune.data.splits import Splits, open_data
from attn_surgery.finetune.data.transforms import classification_transforms
from attn_surgery.finetune.data.views import Views
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.process import derived
from attn_surgery.finetune.recipe import Data
from attn_surgery.finetune.results.publishing import _epochs
from attn_surgery.finetune.running import run_recipe
from tests.finetuning import tiny, weights, within

KINDS = ("clean", "inverted", "low_contrast", "noisy", "blurred")
SMALL = Data(
    channels=1,
    image_size=8,
    limit=60,
    val_limit=20,
    domains=KINDS,
    train_transform={"scale": [0.5, 1.0], "hflip": 0.5},
    val_transform={"crop_pct": 1.0},
)


def picture(mode: str, seed: int = 0, size: int = 40) -> Image.Image:
    shape = (size, size) if mode == "L" else (size, size, 3)
    pixels = numpy.random.default_rng(seed).integers(0, 256, shape)
    return Image.fromarray(pixels.astype("uint8"))


def opened(data: Data) -> Splits:
    return open_data(data, None, classification_transforms)


# Domains


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_keeps_what_kind_of_image_it_is(name: str, mode: str) -> None:
    image = picture(mode)
    made = DOMAINS[name](image)
    assert (made.mode, made.size) == (image.mode, image.size)
    is_same = numpy.array_equal(numpy.asarray(made), numpy.asarray(image))
    assert is_same == (name == "clean")


def test_what_a_domain_does() -> None:
    image = picture("L")
    before = numpy.asarray(image).astype(float)
    after = {name: numpy.asarray(make(image)).astype(float) for name, make in DOMAINS.items()}
    assert numpy.array_equal(after["inverted"], 255 - before)
    assert after["low_contrast"].std() == pytest.approx(CONTRAST * before.std(), rel=0.02)
    assert after["low_contrast"].mean() == pytest.approx(before.mean(), abs=1)
    assert after["blurred"].std() < 0.3 * before.std()
    assert after["blurred"].mean() == pytest.approx(before.mean(), abs=2)
    grey = numpy.asarray(DOMAINS["noisy"](Image.new("L", (200, 200), 128))).astype(float)
    assert (grey - 128).std() == pytest.approx(255 * NOISE, rel=0.05)


def test_each_domain_is_drawn_as_often_as_the_others() -> None:
    torch.manual_seed(0)
    white = Image.new("L", (4, 4), 255)
    drawn = [drawn_domain(white, ["clean", "inverted"]).getpixel((0, 0)) for _ in range(400)]
    assert set(drawn) == {0, 255}
    assert 150 < drawn.count(0) < 250


def test_a_single_domain_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn_domain(picture("L"), ["blurred"])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_measured_is_every_image_in_each() -> None:
    splits = opened(SMALL)
    plain = opened(dataclasses.replace(SMALL, domains=()))
    assert list(splits.domains) == list(KINDS)
    assert len(splits.val) == 5 * len(plain.val) == 100
    for i in range(20):
        clean, label = plain.val[i, i]
        own = [splits.val[5 * i + k, 5 * i + k] for k in range(5)]
        assert all(each[1] == label for each in own)
        assert torch.equal(own[0][0], clean)
        assert (own[1][0] + clean).abs().max() < 1e-6  # grey is 0
        assert all(torch.equal(own[k][0], splits.domains[n][i, i][0]) for k, n in enumerate(KINDS))


def test_pretraining_sees_images_as_they_are() -> None:
    splits, plain = opened(SMALL), opened(dataclasses.replace(SMALL, domains=()))
    assert plain.pretraining is plain.train
    same = [
        torch.equal(splits.pretraining[i, 7 * i][0], plain.train[i, 7 * i][0]) for i in range(60)
    ]
    mixed = [torch.equal(splits.train[i, 7 * i][0], plain.train[i, 7 * i][0]) for i in range(60)]
    assert all(same)
    assert sum(mixed) < 30


# Views


def test_views_are_what_the_transform_gives(tmp_path: Path) -> None:
    plain, kept = opened(SMALL), opened(SMALL).with_views(3, tmp_path)
    for view in range(3):
        for i in range(60):
            image, label = kept.train[i, 3 * i + view]
            expected, known = plain.train[i, derived("view", view, i)]
            assert torch.equal(image, expected)
            assert label == known
    assert not torch.equal(kept.train[0, 0][0], kept.train[0, 1][0])
    for name in KINDS:
        for i in range(20):
            assert torch.equal(kept.domains[name][i, i][0], plain.domains[name][i, i][0])
    assert all(torch.equal(kept.val[i, i][0], plain.val[i, i][0]) for i in range(100))


def test_views_are_read_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened(SMALL).with_views(2, tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("the transform runs again")

    monkeypatch.setattr("attn_surgery.finetune.data.batches.Prepared.__getitem__", refuse)
    after = opened(SMALL).with_views(2, tmp_path)
    assert torch.equal(after.train[5, 3][0], before.train[5, 3][0])


@pytest.mark.parametrize(
    "change",
    [{"image_size": 9}, {"train_transform": {"hflip": 0.0}}, {"limit": 59}, {"held_out": 9}],
    ids=str,
)
def test_other_data_has_other_views(tmp_path: Path, change: dict[str, Any]) -> None:
    opened(SMALL).with_views(1, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    plain = opened(dataclasses.replace(SMALL, **change))
    other = plain.with_views(1, tmp_path)
    assert len({path.name for path in tmp_path.iterdir()} - before) >= 4
    assert torch.equal(other.train[3, 0][0], plain.train[3, derived("view", 0, 3)][0])


def test_a_half_written_file_is_written_again(tmp_path: Path) -> None:
    before = opened(SMALL).with_views(1, tmp_path)
    image = before.train[3, 0][0].clone()
    for path in tmp_path.glob("*.targets.npy"):
        path.unlink()
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert torch.equal(opened(SMALL).with_views(1, tmp_path).train[3, 0][0], image)


def test_views_that_cannot_be_read(tmp_path: Path) -> None:
    opened(SMALL).with_views(1, tmp_path)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(b"nothing")
    with pytest.raises(SurgeryError, match="the views of images"):
        opened(SMALL).with_views(1, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_views(tmp_path: Path, workers: int) -> None:
    kept = opened(SMALL).with_views(2, tmp_path)
    assert isinstance(kept.train, Views)
    loading = Loading(16, workers=workers)
    images = [batch[0] for batch in train_batches(kept.train, loading, 0)]
    assert [tuple(each.shape) for each in images] == [(16, 1, 8, 8)] * 3
    again = [batch[0] for batch in train_batches(kept.train, loading, 1)]
    assert not torch.equal(images[0], again[0])
    assert sum(len(batch[0]) for batch in val_batches(kept.val, loading)) == 100


# Images held out


def test_what_is_held_out_is_not_learned() -> None:
    data = Data(held_out=300)
    train, val = (open_source(data, train=each) for each in (True, False))
    whole = open_source(Data(), train=True)
    assert (len(train), len(val), len(whole)) == (1048, 300, 1348)

    def contents(source: Any) -> list[bytes]:
        return [source.samples[i][0].tobytes() for i in range(len(source))]

    assert sorted(contents(train) + contents(val)) == sorted(contents(whole))
    limited = open_source(Data(held_out=300, limit=100, val_limit=50), train=True)
    assert set(contents(limited)) <= set(contents(train))
    with pytest.raises(SurgeryError, match="leaves none of 1348 training images"):
        open_source(Data(held_out=1348), train=True)


def test_keys_that_are_younger_change_no_identity() -> None:
    told = json.dumps(tiny(Path("out")).identity("cbam", 0))
    assert not any(word in told for word in ("domains", "views", "held_out", "val_interval"))
    held = tiny(Path("out"), data=within("data", held_out=20))
    assert held.identity("cbam", 0)["data"]["held_out"] == 20


# Whole recipes


STAGE = {"trains": ["head", "attention"], "epochs": 3, "lr": 0.01}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("domains")
    data = within("data", domains=["clean", "inverted", "noisy"], views=2)
    changes = {"controls": ["head", "scale"], "stages": [STAGE], "val_interval": 2, "seeds": 2}
    return run_recipe(tiny(output, data=data, **changes)), output


def test_the_score_is_the_mean_over_the_domains(run: Any) -> None:
    outcome, _ = run
    assert len(outcome.runs) == 8
    for each in outcome.runs:
        for told in (each["score"], *each["history"]):
            own = [told[f"accuracy/{name}"] for name in ("clean", "inverted", "noisy")]
            assert told["accuracy"] == pytest.approx(sum(own) / 3)
        assert each["score"].keys() >= {"loss/clean", "images/noisy"}
    first, *others = (each for each in outcome.runs if each["identity"]["seed"] == 0)
    assert all(each["at_insertion"] == first["score"] for each in others)


def test_the_table_of_domains(run: Any) -> None:
    _, output = run
    text = (output / "result.md").read_text()
    assert "| accuracy (%)   | clean   | inverted   | noisy   |" in text
    head = next(line for line in text.splitlines() if line.startswith("| control-head  "))
    scores = [
        json.loads((output / f"seed{i}/control-head/metrics.json").read_text()) for i in (0, 1)
    ]
    clean = sum(each["score"]["accuracy/clean"] for each in scores) / 2
    assert f"{100 * clean:.2f}" in head


def test_measured_again_without_views(run: Any) -> None:
    _, output = run
    assert all(each.same for each in remeasure(output))


def test_the_control_is_a_plain_gate(run: Any) -> None:
    _, output = run
    names = [
        key for key in weights(output)["seed0/control-scale/last.safetensors"] if "attn" in key
    ]
    assert names == [f"layer{i}.0.attn.scale" for i in (1, 2, 3)]


def test_how_often_is_measured_changes_no_weights(run: Any, tmp_path: Path) -> None:
    outcome, output = run
    data = within("data", domains=["clean", "inverted", "noisy"], views=2)
    run_recipe(tiny(tmp_path, data=data, control=False, stages=[STAGE], seeds=1))
    for path in ("host/last.safetensors", "cbam/last.safetensors"):
        own, other = (weights(folder)[f"seed0/{path}"] for folder in (output, tmp_path))
        assert all(torch.equal(own[key], other[key]) for key in own)
    often = json.loads((tmp_path / "seed0/cbam/metrics.json").read_text())
    seldom = next(each for each in outcome.runs if each["identity"]["variant"] == "cbam")
    assert [each["epoch"] for each in often["history"]] == [1, 2, 3]
    assert [each["epoch"] for each in seldom["history"]] == [2, 3]
    assert often["score"] == seldom["score"]


def test_the_epochs_of_a_curve() -> None:
    history = [{"stage": f"stages.{k}", "epoch": i} for k, i in ((0, 2), (0, 3), (1, 2), (1, 4))]
    runs = [
        {"identity": {"variant": "se"}, "history": history[:1]},
        {"identity": {"variant": "se"}, "history": history},
        {"identity": {"variant": "host"}, "history": history * 2},
    ]
    assert _epochs(runs, "se") == [0, 2, 3, 5, 7]


def test_fresh_seeds(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"control": False, "stages": [STAGE]}
    run_recipe(tiny(tmp_path / "two", seeds=2, **changes))
    outcome = run_recipe(tiny(tmp_path / "fresh", seeds=1, first_seed=1, **changes))
    assert outcome is not None
    assert sorted(path.name for path in (tmp_path / "fresh").glob("seed*")) == ["seed1"]
    own, other = (weights(tmp_path / each) for each in ("fresh", "two"))
    for name, tensors in own.items():
        assert all(torch.equal(tensors[key], other[name][key]) for key in tensors)
    assert (tmp_path / "fresh/result.csv").read_text().splitlines()[0].endswith(",seed1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"domains": ["clear"]}}, "data.domains='clear'.*did you mean 'clean'"),
        ({"data": {"domains": ["clean", "clean"]}}, "names must be unlike"),
        ({"data": {"views": -1}}, "data.views=-1 must be at least 0"),
        ({"data": {"held_out": 1348}}, "leaves none"),
        ({"val_interval": 0}, "val_interval=0 must be at least 1"),
        ({"first_seed": -1}, "first_seed=-1 must be at least 0"),
        (
            {"data": {"task": "segmentation", "domains": ["clean"]}},
            "for classification",
        ),
    ],
)
def test_mistakes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = within("data", **change.pop("data", {}))
    with pytest.raises(SurgeryError, match=message):
        run_recipe(tiny(tmp_path, data=data, **change))
