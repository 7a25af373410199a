"""Hosts of another make: config objects, optional arguments, outputs that are no tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attn_surgery

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_sizes": [16, 32], "depths": [2, 2]}


def resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=16, layer_type="basic", **SMALL)
    return transformers.ResNetModel(config)


def regnet() -> Any:
    config = transformers.RegNetConfig(embedding_size=16, groups_width=8, **SMALL)
    return transformers.RegNetModel(config)


def convnext() -> Any:
    return transformers.ConvNextModel(transformers.ConvNextConfig(num_stages=2, **SMALL))


def mobilenet() -> Any:
    return transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.35))


def bit() -> Any:
    return transformers.BitModel(
        transformers.BitConfig(
            embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], num_groups=4
        )
    )


@pytest.mark.parametrize(
    ("make", "after", "existing", "sites"),
    [
        (resnet, "layer", None, 4),
        (regnet, "layer", "layer.2", 4),
        (convnext, "pwconv2", None, 4),
        (mobilenet, "reduce_1x1", None, 10),
        (bit, "conv3", None, 4),
    ],
)
def test_a_model_of_hugging_face(
    make: Callable[[], Any], after: str, existing: str | None, sites: int
) -> None:
    host = make().eval()
    plan = attn_surgery.plan(host, "cbam", existing="stack")
    assert {(site.after, site.existing) for site in plan.sites} == {(after, existing)}
    assert len(plan.sites) == sites
    x = torch.randn(1, 3, 64, 64)
    expected = host(x).last_hidden_state
    attn_surgery.apply(host, "cbam", existing="stack")
    assert torch.equal(host(x).last_hidden_state, expected)
    attn_surgery.remove(host)
    assert torch.equal(host(x).last_hidden_state, expected)
