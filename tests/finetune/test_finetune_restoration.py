"""Restoration: pairs of images, their score in decibels, a host that sees little at a time."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data.batches import Loading, train_batches, val_batches
from attn_surgery.finetune.data.datasets import open_source
from attn_surgery.finetune.data.domains import CAST, DOMAINS, GAIN, GAMMA, STRONGEST_NOISE
from attn_surgery.finetune.data.splits import Splits, open_data
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.recipe import Data
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.small_restorer import SmallRestorer
from attn_surgery.finetune.tasks import TASKS
from attn_surgery.finetune.tasks.restoration import peak_signal_to_noise
from tests.finetuning import tiny

RESTORATION = TASKS["restoration"]


def photographs(root: Path, size: tuple[int, int] = (40, 30)) -> Path:
    """Write smooth images: three to learn from, one of them deep down, and two others."""
    for i, name in enumerate(["train/a.png", "train/b.jpg", "train/deep/c.png", "val/d.png"]):
        write(root / name, i, size)
    write(root / "val/e.png", 9, size)
    (root / "train/notes.txt").write_text("no image")
    return root


def write(path: Path, seed: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = numpy.random.default_rng(seed).integers(60, 200, (3, 4, 3)).astype("uint8")
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(
        "folder",
        task="restoration",
        root=str(photographs(tmp_path / "photographs")),
        image_size=16,
        batch_size=4,
        repeats=4,
        domains=("grainy", "recoloured"),
    )


def opened(data: Data) -> Splits:
    return open_data(data, None, RESTORATION.transforms)


def loading(size: int = 4) -> Loading:
    return Loading(size, collate=RESTORATION.collate)


# Data


def test_all_images_of_a_split_whatever_the_folder(data: Data) -> None:
    once = dataclasses.replace(data, repeats=1)
    source = open_source(once, train=True)
    assert [Path(name).name for name in source.names] == ["a.png", "b.jpg", "c.png"]
    assert len(open_source(once, train=False)) == 2
    assert opened(data).classes == 0


def test_repeats(data: Data) -> None:
    splits = opened(data)
    assert len(splits.train) == 12
    assert len(splits.val) == 2 * 4 * 2
    names = [splits.train.source.name(i) for i in range(12)]
    assert all(names.count(name) == 4 for name in names)
    seen = [splits.domains["grainy"][i, i][1] for i in range(8)]
    assert len({bytes(each.numpy()) for each in seen}) == 8  # each time cut elsewhere


def test_pairs_of_what_became_of_an_image_and_the_image(data: Data) -> None:
    splits = opened(dataclasses.replace(data, domains=("inverted",), repeats=1))
    for image, clean in (splits.train[0, 3], splits.val[1, 1], splits.pretraining[0, 3]):
        assert image.shape == clean.shape == (3, 16, 16)
        assert 0 <= clean.min() <= clean.max() <= 1
        torch.testing.assert_close(image, 1 - clean)


def test_what_is_measured_is_the_same_each_time(data: Data) -> None:
    once, again = (list(val_batches(opened(data).val, loading())) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_images_smaller_than_what_is_cut_are_padded(data: Data) -> None:
    splits = opened(dataclasses.replace(data, image_size=64))
    assert splits.train[0, 0][0].shape == (3, 64, 64)


def test_grey_images(data: Data) -> None:
    (image, clean), *_ = train_batches(
        opened(dataclasses.replace(data, channels=1)).train, loading(), 0
    )
    assert image.shape == clean.shape == (4, 1, 16, 16)


def test_flips_are_as_often_as_asked(data: Data) -> None:
    plain = dataclasses.replace(data, domains=("clean",), image_size=30)
    never, always = (
        opened(dataclasses.replace(plain, train_transform={"hflip": p})).train for p in (0.0, 1.0)
    )
    torch.testing.assert_close(never[0, 5][1], always[0, 5][1].flip(-1))


def test_parts_of_an_image_are_resized_where_a_scale_is_given(data: Data) -> None:
    whole = {"scale": [1.0, 1.0]}
    own = dataclasses.replace(data, domains=("clean",), repeats=1)
    same = dataclasses.replace(own, train_transform={**whole, "hflip": 0.0}, val_transform=whole)
    square = Path(data.root) / "square"
    write(square / "train/a.png", 0, (32, 32))
    write(square / "val/b.png", 1, (32, 32))
    splits = opened(dataclasses.replace(same, root=str(square)))
    for pair, name in ((splits.train[0, 5], "train/a.png"), (splits.val[0, 0], "val/b.png")):
        image = Image.open(square / name).resize((16, 16), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255
        torch.testing.assert_close(pair[1], expected, atol=1.5 / 255, rtol=0)


def test_noise_of_a_strength_that_is_drawn() -> None:
    torch.manual_seed(0)
    grey = Image.new("L", (100, 100), 128)
    found = [numpy.asarray(DOMAINS["grainy"](grey)).astype(float).std() / 255 for _ in range(200)]
    assert 0 <= min(found) < 0.1 * STRONGEST_NOISE
    assert 0.9 * STRONGEST_NOISE < max(found) < 1.05 * STRONGEST_NOISE
    assert numpy.mean(found) == pytest.approx(STRONGEST_NOISE / 2, rel=0.1)


def test_colours_are_off_by_so_much_at_most() -> None:
    torch.manual_seed(0)
    grey = Image.new("RGB", (2, 2), (64, 64, 64))
    found = numpy.array([DOMAINS["recoloured"](grey).getpixel((0, 0)) for _ in range(300)]) / 255
    before = 64 / 255
    most = before**2**-GAMMA * 2 ** (GAIN + CAST)
    least = before**2**GAMMA * 2 ** -(GAIN + CAST)
    assert least - 0.01 <= found.min() < 1.5 * least
    assert found.max() <= min(1.0, most) + 0.01
    casts = numpy.log2(found.max(1) / found.min(1))
    assert 1.2 * CAST < casts.max() < 2 * CAST + 0.2
    image = numpy.asarray(DOMAINS["recoloured"](Image.new("L", (4, 4), 100)))
    assert (image == image[0, 0]).all()  # all of an image alike


# The score


def test_decibels() -> None:
    wanted = torch.rand(4, 3, 8, 8)
    found = wanted + 0.1 * torch.tensor([1.0, 0.1, 0.01, 0.0])[:, None, None, None]
    ratios = peak_signal_to_noise(found, wanted)
    torch.testing.assert_close(ratios, torch.tensor([20.0, 40.0, 60.0, 100.0]), atol=0.1, rtol=0)


class Alone:
    """An accelerator of one process."""

    device = torch.device("cpu")

    def reduce(self, value: Any, reduction: str) -> Any:
        return value


def test_the_mean_over_images_cut_off_at_black_and_white() -> None:
    wanted = torch.zeros(6, 1, 4, 4)
    given = wanted.clone()
    given[0] += 0.1
    given[1] -= 5.0
    given[2:] += 0.01
    batches = [(given[:4], wanted[:4]), (given[4:], wanted[4:])]
    told = RESTORATION.measure(nn.Identity(), batches, 0, Alone())
    assert told["psnr"] == pytest.approx((20 + 100 + 4 * 40) / 6, rel=1e-5)
    assert told["loss"] == pytest.approx((0.1 + 5 + 0.04) / 6, rel=1e-5)
    assert told["images"] == 6


def test_the_loss() -> None:
    given, wanted = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    loss = RESTORATION.loss(tiny(Path("x")).stages[0], 0)
    torch.testing.assert_close(loss(nn.Identity(), (given, wanted)), (given - wanted).abs().mean())


# The host


def test_the_host_sees_little_at_a_time() -> None:
    host = SmallRestorer(blocks=2, width=4).eval()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    host(x)[0, :, 16, 16].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).nonzero()
    assert (seen.min().item(), seen.max().item()) == (16 - 6, 16 + 6)


def test_every_block_of_the_host_gets_attention() -> None:
    plan = attn_surgery.plan(SmallRestorer(), "se", where="body.*")
    assert [(site.block, site.after) for site in plan.sites] == [
        (f"body.{i}", "conv2") for i in range(4)
    ]


# The recipe


def recipe(output: Path, data: Data, **changes: Any) -> Any:
    told = {key: value for key, value in dataclasses.asdict(data).items() if value != ()}
    host = {
        "model": "attn_surgery.finetune.small_restorer:small_restorer",
        "options": {"blocks": 1, "width": 4},
    }
    own = {
        "host": host,
        "data": {**told, "domains": list(data.domains)},
        "pretraining": [{"epochs": 2, "lr": 0.01}],
        "stages": [{"epochs": 2, "lr": 0.01}],
        "surgery": {"attention": ["se", "cbam"]},
        "controls": ["same", "scale"],
        "seeds": 3,
    }
    return tiny(output, **{**own, **changes})


def test_a_recipe(data: Data, tmp_path: Path) -> None:
    told = recipe(tmp_path / "out", data)
    outcome = run_recipe(told)
    assert outcome is not None
    assert outcome.score == "psnr"
    assert all(5 < line.mean < 60 for line in outcome.lines)
    text = str(outcome)
    assert "psnr (dB)" in text
    assert f"{outcome.lines[1].mean:.2f}" in text
    domains = next(each for each in text.split("\n\n") if "grainy" in each)
    assert domains.splitlines()[0].split() == ["psnr", "(dB)", "grainy", "recoloured"]
    found = remeasure(tmp_path / "out", "last", [])
    assert all(each.same for each in found)
    assert str(found[0]).endswith(" dB (as recorded)")


def test_training_restores(data: Data, tmp_path: Path) -> None:
    """Longer, what is learned is better than leaving the image as it is."""
    own = dataclasses.replace(data, domains=("inverted",), repeats=20)
    told = recipe(
        tmp_path / "out",
        own,
        pretraining=[{"epochs": 8, "lr": 0.02}],
        surgery={"attention": ["se"]},
        controls=["same"],
        seeds=1,
    )
    outcome = run_recipe(told)
    assert outcome is not None
    splits = opened(own)
    untouched = RESTORATION.measure(nn.Identity(), val_batches(splits.val, loading()), 0, Alone())
    assert outcome.lines[0].mean > untouched["psnr"] + 3
    assert not math.isnan(outcome.lines[-1].mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ()}, "data.domains say what is to be restored, as"),
        ({"domains": ("sepia",)}, "data.domains='sepia' is not supported"),
        ({"views": 2}, "data.views are for classification"),
        ({"repeats": 0}, "data.repeats=0 must be at least 1"),
    ],
)
def test_mistakes(data: Data, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        check_recipe(recipe(tmp_path, dataclasses.replace(data, **changes)))


def test_mistakes_that_show_with_the_data(data: Data, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="has no key 'ratio'"):
        opened(dataclasses.replace(data, train_transform={"ratio": [0.5, 1.0]}))
    with pytest.raises(SurgeryError, match="has no key 'hflip'"):
        opened(dataclasses.replace(data, val_transform={"hflip": 0.5}))
    with pytest.raises(SurgeryError, match="val2 has no images"):
        opened(dataclasses.replace(data, val_split="val2"))
    host = {"model": "attn_surgery.finetune.small_resnet:small_resnet", "options": {"channels": 3}}
    with pytest.raises(SurgeryError, match="returns an image as large as the one it is given"):
        run_recipe(recipe(tmp_path / "out", data, host=host))


@pytest.mark.parametrize("scale", [1.0, "all", [1, 2, 3]])
def test_values_that_no_transform_takes(data: Data, scale: object) -> None:
    with pytest.raises(SurgeryError, match=r"^data.val_transform: "):
        opened(dataclasses.replace(data, val_transform={"scale": scale}))


@pytest.mark.parametrize("stage", [{"mixup": 0.2}, {"trains": ["head"]}, {"label_smoothing": 0.1}])
def test_what_is_for_classification(data: Data, tmp_path: Path, stage: dict[str, Any]) -> None:
    with pytest.raises(SurgeryError, match="for classification"):
        check_recipe(recipe(tmp_path, data, stages=[{"epochs": 1, "lr": 0.01, **stage}]))
