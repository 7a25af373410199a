"""The recipes that ship: all can be read; those that need GPUs take two steps on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attn_surgery
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe.reading import read_recipe, shipped
from attn_surgery.finetune.running import run_recipe

NAMES = [
    "context",
    "detection_fasterrcnn",
    "digits",
    "digits_domains",
    "efficientnet_lite0_transfer",
    "fashion_mnist",
    "imagenet_resnet50_cbam",
    "lite0_adapter",
    "lite0_adapter_norms",
    "mixed_domains",
    "mixed_domains_norms",
    "segmentation_deeplab",
    "segmentation_small",
]
FOLDER = Path(attn_surgery.__file__).parents[1] / "recipes"
ON_CPU = ["device=cpu", "threads=1", "report_seconds=0", "seeds=1", "data.workers=0"]


def test_these_ship():
    assert shipped() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_they_are_right_and_short(name):
    check_recipe(read_recipe(name))
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    assert 10 <= len([line for line in lines if line and not line.startswith("#")]) <= 40


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    chance = np.random.default_rng(seed)
    return Image.fromarray(chance.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def write_folder(root: Path, classes: int = 2, images: int = 4) -> Path:
    for split in ("train", "val"):
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(images):
                picture(10 * c + i).save(folder / f"{i}.png")
    return root


@pytest.mark.slow
def test_imagenet(tmp_path):
    root = write_folder(tmp_path / "data")
    changes = [
        "data.batch_size=4",
        "data.image_size=32",
        "stages.1.epochs=1",
        "host.pretrained=false",
        "host.options={num_classes=2}",
    ]
    outcome = run_recipe(
        read_recipe(
            "imagenet_resnet50_cbam",
            [*ON_CPU, *changes, f"data.root={root}", f"output={tmp_path / 'out'}", "control=false"],
        )
    )
    assert outcome is not None
    assert [line.variant for line in outcome.lines] == ["host", "cbam"]
    assert "not measured" in str(outcome)
    metrics = json.loads((tmp_path / "out/seed0/cbam/metrics.json").read_text())
    assert [each["stage"] for each in metrics["history"]] == ["stages.0", "stages.1"]


def write_coco(root: Path, images: int = 2) -> Path:
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        for i in range(images):
            picture(i, (64, 64)).save(root / split / f"{i}.png")
        boxes = [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 3,
                "bbox": [5, 5, 30, 20],
                "area": 600,
                "iscrowd": 0,
            }
            for i in range(images - 1)
        ]  # the last image has no object
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(images)
            ],
            "annotations": boxes,
            "categories": [{"id": 3, "name": "car"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_detection(tmp_path):
    pytest.importorskip("pycocotools")
    root = write_coco(tmp_path / "coco", images=3)
    changes = [
        "data.batch_size=1", "data.limit=2", "stages.0.epochs=1", "host.pretrained=false",
        "host.model=torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
        "surgery.where=[\"backbone.body.1[0-9]\"]", "control=false", "surgery.existing=stack",
    ]  # fmt: skip
    outcome = run_recipe(
        read_recipe(
            "detection_fasterrcnn",
            [*ON_CPU, *changes, f"data.root={root}", f"output={tmp_path / 'out'}"],
        )
    )
    assert outcome is not None
    assert outcome.score == "map"


def write_voc(root: Path, images: int = 4) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    for i in range(images):
        picture(i).save(base / f"JPEGImages/{i}.jpg")
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[10:20, 10:30], mask[0] = i % 3, 255
        Image.fromarray(mask).save(base / f"SegmentationClass/{i}.png")
    for split in ("train", "val"):
        names = "\n".join(map(str, range(images)))
        (base / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    return root


@pytest.mark.slow
def test_segmentation(tmp_path):
    root = write_voc(tmp_path / "voc")
    changes = [
        "data.batch_size=2", "data.image_size=33", "stages.0.epochs=1", "stages.0.warmup_epochs=0",
        "host.pretrained=false", "data.download=false", "surgery.where=[\"backbone.layer4.*\"]",
        "control=false",
    ]  # fmt: skip
    outcome = run_recipe(
        read_recipe(
            "segmentation_deeplab",
            [*ON_CPU, *changes, f"data.root={root}", f"output={tmp_path / 'out'}"],
        )
    )
    assert outcome is not None
    assert outcome.score == "miou"
    assert 0 <= outcome.lines[1].mean <= 1
