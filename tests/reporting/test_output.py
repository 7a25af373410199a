"""position="output": attention after any module, in a residual block or not."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import attn_surgery
from attn_surgery import SurgeryError

STAGES = ["layer1", "layer2", "layer3"]
DEPTHWISE = [f"features.{i}.conv.1" for i in range(2, 18)]


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_bam_between_stages_has_the_published_count():
    with torch.device("meta"):
        host = torchvision.models.resnet50()
    attn_surgery.apply(host, "bam", where=STAGES, position="output", init="paper")
    assert params(host) == 25_915_099
    assert list(attn_surgery.inserted(host)) == ["layer1.2.attn", "layer2.3.attn", "layer3.5.attn"]


# Hou et al. 2021, arXiv:2103.02907, official code: max(8, C // 32) hidden channels, with biases
COORDINATE = {
    f"features.{i}.conv.1": ("coord", {"rd_channels": hidden, "bias": True})
    for first, last, hidden in ((2, 7, 8), (8, 11, 12), (12, 14, 18), (15, 17, 30))
    for i in range(first, last + 1)
}


@pytest.mark.parametrize(
    ("attention", "options", "expected"),
    [
        ("se", {"reduction": 24}, 3_888_208),
        ("cbam", {"reduction": 24}, 3_889_808),
        (COORDINATE, {}, 3_950_648),
    ],
)
def test_mobilenet_with_attention_after_the_depthwise_convolution(attention, options, expected):
    with torch.device("meta"):
        host = torchvision.models.mobilenet_v2()
    attn_surgery.apply(host, attention, where=DEPTHWISE, position="output", init="paper", **options)
    assert params(host) == expected


def test_the_attention_receives_what_the_module_returns():
    host = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 32, 32)
    outputs = []
    host.layer2.register_forward_hook(lambda module, args, output: outputs.append(output))
    before = host(x)
    attn_surgery.apply(host, "se", where="layer2", position="output", init="paper")
    attention = attn_surgery.inserted(host)["layer2.1.attn"]
    after = host(x)
    assert torch.equal(outputs[1], attention(outputs[0]))
    assert not torch.equal(after, before)
    attn_surgery.remove(host)
    assert torch.equal(host(x), before)


@pytest.mark.parametrize("path", ["conv1", "layer1", "layer4.1", "layer3.0.downsample", "relu"])
def test_identity_bit_for_bit(path):
    host = torchvision.models.resnet18()
    twin = attn_surgery.apply(copy.deepcopy(host), "cbam", where=path, position="output")
    x = torch.randn(2, 3, 32, 32)
    for mode in (False, True):
        assert torch.equal(host.train(mode)(x), twin.train(mode)(x))


def test_where_has_to_say_it():
    with pytest.raises(SurgeryError, match="give where"):
        attn_surgery.plan(torchvision.models.resnet18(), "se", position="output")


def test_what_is_no_map_or_called_twice_is_skipped_with_the_reason():
    host = torchvision.models.resnet18()
    plan = attn_surgery.plan(host, "se", where=["layer1.0.relu", "layer1.0"], position="output")
    assert [site.block for site in plan.sites] == ["layer1.0"]
    assert [site.reason for site in plan.skipped] == ["it is called more than once"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "fc",
            "'fc' matches no module that returns a map; the modules .* are: avgpool, bn1, conv1,",
        ),
        (lambda site: False, "where selects no site; the modules that return a map are: avgpool,"),
    ],
)
def test_modules_are_named_where_modules_are_asked_for(where, message):
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.plan(torchvision.models.resnet18(), "se", where=where, position="output")


def test_a_plan_for_outputs_is_replayed():
    host = torchvision.models.resnet18()
    plan = attn_surgery.plan(host, "se", where=["layer1", "layer3"], position="output")
    again = attn_surgery.Plan.from_dict(plan.to_dict())
    attn_surgery.apply(host, again)
    assert list(attn_surgery.inserted(host)) == ["layer1.1.attn", "layer3.1.attn"]
