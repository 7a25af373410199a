"""Masks and boxes: what is learned of them, how it is judged, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_finetune_recipes import write_voc
from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data.splits import open_data
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe import Data
from attn_surgery.finetune.recipe.reading import read_recipe
from attn_surgery.finetune.tasks.by_name import TASKS
from attn_surgery.finetune.tasks.dense import Detection, average_precision


def boxes(*corners: list[int], **told: list[float]) -> dict[str, torch.Tensor]:
    labels = torch.ones(len(corners), dtype=torch.long)
    known = {key: torch.tensor(value) for key, value in told.items()}
    return {"boxes": torch.tensor(corners).float().reshape(-1, 4), "labels": labels, **known}


def test_what_lies_in_a_crowd_is_no_mistake():
    pytest.importorskip("pycocotools")
    objects = [[0, 0, 20, 20], [50, 50, 90, 90]]
    seen = boxes([50, 50, 80, 80], *objects[:1], scores=[0.9, 0.8])
    crowd = average_precision([(boxes(*objects, iscrowd=[0, 1], area=[400.0, 1600.0]), seen)])
    assert crowd == {"map": pytest.approx(1), "map50": pytest.approx(1)}
    assert average_precision([(boxes(*objects[:1]), seen)])["map"] == pytest.approx(0.5)


def test_crowds_and_boxes_without_an_area_are_not_learned():
    image = Image.new("RGB", (64, 64))
    target = {
        "boxes": torch.tensor([[1, 1, 9, 9], [2, 2, 30, 30], [60, 5, 70, 9], [3, 3, 3, 9]]),
        "labels": torch.tensor([1, 2, 3, 4]),
        "iscrowd": [0, 1, 0, 0],
        "area": [50, 700, 30, 0],
    }
    learned, measured = (
        Detection().transforms(Data(), {}, train)(image, target)[1] for train in (True, False)
    )
    assert learned["labels"].tolist() == [1, 3]
    assert learned["area"].tolist() == [50, 30]
    assert measured["boxes"].tolist() == target["boxes"].tolist()
    assert measured["iscrowd"].tolist() == target["iscrowd"]
    empty = Detection().transforms(Data(), {}, True)(image, {"image_id": 7})[1]
    assert {key: len(value) for key, value in empty.items()} == dict.fromkeys(learned, 0)


def masks(tmp_path: Path, **changes: Any) -> Data:
    root = write_voc(tmp_path / "voc")
    own: dict[str, Any] = {"task": "segmentation", "classes": 21, "image_size": 33, **changes}
    return Data("torchvision/VOCSegmentation", root=str(root), **own)


def test_masks_of_more_classes_than_there_are(tmp_path):
    data = masks(tmp_path, classes=2)
    splits = open_data(data, None, TASKS["segmentation"].transforms)
    with pytest.raises(
        SurgeryError, match=r"number 2: .*its mask has the class 2, but data.classes=2"
    ):
        splits.val[2, 0]


def test_a_segmentation_net_of_other_classes():
    model = nn.Conv2d(3, 4, 1)
    batch = torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    TASKS["segmentation"].check_output(model, batch, 4)
    with pytest.raises(SurgeryError, match=r"output is \(2, 4, 8, 8\) for masks .* of 3 classes"):
        TASKS["segmentation"].check_output(model, batch, 3)


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ("segmentation", {"train_transform": {"scal": [1, 1]}}, "'scal'; did you mean 'scale'"),
        ("segmentation", {"val_transform": {"crop_pct": 1}}, "val_transform has no key 'crop_pct'"),
        ("detection", {"train_transform": {"hflip": 0}}, "train_transform has no key 'hflip'"),
        ("detection", {"image_size": 64}, "host.options.min_size"),
    ],
)
def test_what_a_task_does_not_read_is_refused(task, given, told):
    with pytest.raises(SurgeryError, match=told):
        TASKS[task].transforms(Data(task=task, **given), {"input_size": (3, 8, 8)}, True)


def test_the_word_head_is_for_classifiers():
    recipe = read_recipe("segmentation_deeplab", ["stages.0.trains=head"])
    with pytest.raises(SurgeryError, match="'head' is for classification"):
        check_recipe(recipe)
