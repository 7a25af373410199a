"""Segmentation of what lies in folders, in several domains, by a small network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import tiny
from PIL import Image

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import open_data
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe import Data
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.small_segmenter import SmallSegmenter
from attn_surgery.finetune.tasks import TASKS

SEGMENTATION = TASKS["segmentation"]


def squares(root: Path, count: int = 12, ending: str = "png") -> Path:
    """Write images of a light square, class 1, before a dark background, and their masks."""
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / split / part / "sub").mkdir(parents=True)
        for i in range(count):
            image, mask = Image.new("RGB", (16, 16), (20, 20, 20)), Image.new("L", (16, 16))
            box = (i % 4, i % 3, i % 4 + 8, i % 3 + 8)
            image.paste((220, 220, 220), box)
            mask.paste(1, box)
            name = f"sub/{i}" if i % 2 else str(i)
            image.save(root / split / "images" / f"{name}.{ending}")
            mask.save(root / split / "masks" / f"{name}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(
        "folder",
        "segmentation",
        root=str(squares(tmp_path / "squares")),
        classes=2,
        image_size=16,
        batch_size=6,
        domains=("clean", "inverted"),
    )


def test_images_and_masks_of_the_same_name(data: Data) -> None:
    plain = dataclasses.replace(data, domains=())
    splits = open_data(plain, None, SEGMENTATION.transforms)
    assert (len(splits.train), len(splits.val), splits.classes) == (12, 12, 2)
    for i in range(12):
        image, mask = splits.val[i, 0]
        assert image.shape == (3, 16, 16)
        assert torch.equal(image[0] > 0, mask == 1)


def test_other_endings_of_the_images(tmp_path: Path) -> None:
    root = squares(tmp_path, count=2, ending="bmp")
    splits = open_data(
        Data("folder", "segmentation", root=str(root), classes=2, image_size=16),
        None,
        SEGMENTATION.transforms,
    )
    assert len(splits.val) == 2


def test_an_image_without_a_mask(data: Data) -> None:
    (Path(data.root) / "val" / "masks" / "4.png").unlink()
    with pytest.raises(SurgeryError, match=r"4\.png is missing: each image has a mask"):
        open_data(data, None, SEGMENTATION.transforms)


def test_domains_are_the_images_alone(data: Data) -> None:
    splits = open_data(data, None, SEGMENTATION.transforms)
    clean, inverted = (splits.domains[name][3, 0] for name in ("clean", "inverted"))
    assert torch.equal(clean[1], inverted[1])
    assert torch.equal(clean[0] > 0, inverted[0] < 0)
    before = open_data(dataclasses.replace(data, domains=()), None, SEGMENTATION.transforms)
    torch.manual_seed(0)
    wanted = before.train[3, 0]
    torch.manual_seed(0)  # the pretraining sees the images as they are
    assert all(map(torch.equal, splits.pretraining[3, 0], wanted))


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_the_host(size: tuple[int, int]) -> None:
    host = SmallSegmenter(classes=5)
    assert host(torch.randn(2, 3, *size)).shape == (2, 5, *size)
    plan = attn_surgery.plan(host, "se")
    assert [site.block for site in plan.sites] == ["layer1.0", "layer2.0", "layer3.0"]


def recipe(output: Path, data: Data, **changes: Any) -> Any:
    told = {key: value for key, value in dataclasses.asdict(data).items() if value != ()}
    own = {
        "host": {
            "model": "attn_surgery.finetune.small_segmenter:small_segmenter",
            "options": {"classes": 2, "width": 4, "stem_stride": 1},
        },
        "data": {**told, "domains": list(data.domains)},
        "pretraining": [{"epochs": 6, "lr": 0.03}],
        "stages": [{"epochs": 2, "lr": 0.01, "trains": ["classifier.*", "attention"]}],
        "surgery": {"attention": ["se"]},
        "controls": ["same", "norms", "scale", "full"],
        "seeds": 1,
    }
    return tiny(output, **{**own, **changes})


def test_a_recipe(data: Data, tmp_path: Path) -> None:
    told = recipe(tmp_path / "out", data)
    assert [stage.trains for _, stage in told.stages_of("control-norms")] == [
        ("classifier.*", "norms")
    ]
    assert [stage.trains for _, stage in told.stages_of("control-full")] == [("all",)]
    outcome = run_recipe(told)
    assert outcome is not None
    assert outcome.score == "miou"
    assert outcome.lines[0].mean > 0.3
    trained = {line.variant: line.trained_params or 0 for line in outcome.lines[1:]}
    assert trained["control"] == 28 * 2 + 2
    assert trained["control"] < trained["control-norms"] < trained["control-full"]
    assert "inverted" in str(outcome)


@pytest.mark.parametrize("control", ["head", "norms"])
def test_the_head_is_what_the_stages_name(data: Data, tmp_path: Path, control: str) -> None:
    told = recipe(tmp_path, data, controls=[control])
    if control == "norms":
        check_recipe(told)
        return
    with pytest.raises(SurgeryError, match="'same' trains that alone"):
        check_recipe(told)
