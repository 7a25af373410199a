"""The plan of a whole holds, or skips with a reason, every site of the plans of its parts."""

from __future__ import annotations

from itertools import groupby

import pytest
import zoo
from test_zoo import SLOW_TO_BUILD
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


def _first_of_every_tenth_family() -> set[str]:
    known = sorted((name for name in zoo.names() if name not in SLOW_TO_BUILD), key=zoo.family)
    first = [next(members) for _, members in groupby(known, zoo.family)]
    return set(first[::10])


FEW = _first_of_every_tenth_family()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow, id=name)
        for name in zoo.names()
    ],
)
def test_zoo(name: str):
    assert _told(zoo.build(name), every=name not in FEW) == []


def _told(whole: nn.Module, *, every: bool) -> list[str]:
    return [str(each) for each in differences(whole, every=every)]
