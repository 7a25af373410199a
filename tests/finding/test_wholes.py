"""The plan of a whole holds, or skips with a reason, every site of the plans of its parts."""

from __future__ import annotations

import pytest
import zoo
from torch import nn
from wholes import differences

foreign = pytest.importorskip("foreign", reason="transformers is not installed")

SAMPLE = {
    "RegNetForImageClassification",
    "HGNetV2ForImageClassification",
    "ResNetForImageClassification",
    "MobileViTForSemanticSegmentation",
    "PPLCNetForImageClassification",
    "SwiftFormerForImageClassification",
    "TextNetForImageClassification",
    "SuperPointForKeypointDetection",
    "VideoMAEForVideoClassification",
    "DetrForObjectDetection",
    "DacModel",
    "SpeechT5HifiGan",
    "UnivNetModel",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow, id=name)
        for name in foreign.names()
    ],
)
def test_transformers(name: str):
    assert _told(foreign.built_or_skipped(name), every=name not in SAMPLE) == []


def test_the_sample_is_there():
    assert foreign.VERSION != foreign.RECORDED_WITH or set(foreign.names()) >= SAMPLE


FIRST = zoo.first_of_families()
FEW = zoo.first_of_families(25)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow, id=name)
        for name in sorted(FIRST)
    ],
)
def test_zoo(name: str):
    assert _told(zoo.build(name), every=name not in FEW) == []


def _told(whole: nn.Module, *, every: bool) -> list[str]:
    return [str(each) for each in differences(whole, every=every)]
