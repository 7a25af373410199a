"""What a plan says of channels and dims is what the forward delivers, site by site."""

from __future__ import annotations

import pytest
import zoo
from probing import Probed, probed
from torch import Tensor, nn

foreign = pytest.importorskip("foreign", reason="transformers is not installed")

UNREACHED = {
    "DPTForSemanticSegmentation": "the first of its fusions has one input, and leaves a half alone",
}
"""Models with sites at which nothing arrives in a forward pass, with the reason."""

FOREIGN = {
    "ResNetForImageClassification",
    "ConvNextModel",
    "MobileViTForImageClassification",
    "DetrForObjectDetection",
    "SpeechT5HifiGan",
}


FAST = zoo.first_of_families(9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name)
        for name in zoo.names()
    ],
)
def test_zoo(name: str):
    _check(name, probed(zoo.build(name)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FOREIGN else pytest.mark.slow, id=name)
        for name in foreign.names()
    ],
)
def test_transformers(name: str):
    model = foreign.built_or_skipped(name)
    found = probed(model, foreign.inputs(model))
    assert found.mismatched == ()
    if found.unreached and found.failure and name not in UNREACHED:
        pytest.skip(f"no input is known that it takes: {found.failure}")
    _check(name, found)


def _check(name: str, found: Probed) -> None:
    assert found.mismatched == ()
    if name in UNREACHED:
        assert found.unreached, f"{name} need not be an exception any more"
    else:
        assert not found.unreached, found.failure


class Truthful(nn.Module):
    """A block in a model, to see that a probe does see."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x)


def test_a_probe_sees_what_arrives():
    assert probed(Truthful()) == Probed(1)
    host = Truthful()
    host.convs.register_forward_hook(lambda *called: called[2][:, :1, None])  # no plan can know
    ((site, shapes),) = probed(host).mismatched
    assert (site.channels, site.spatial_dims, shapes) == (4, 1, ((1, 1, 1, 224),))
