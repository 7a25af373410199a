"""The same network as one that was built with attention, from the same weights."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import update_bn

import attn_surgery

TIMM_SE = {"attention": "se", "divisor": 8}
TIMM_CBAM = {
    "attention": "cbam",
    "bias": False,
    "channel_order": "mean_max",
}

SE_PAIRS = [
    ("resnet18", "seresnet18"),
    ("resnet34", "seresnet34"),
    ("resnet50", "seresnet50"),
    ("resnet50t", "seresnet50t"),
    ("resnet101", "seresnet101"),
    ("resnet152", "seresnet152"),
    ("resnext50_32x4d", "seresnext50_32x4d"),
    ("resnext101_32x4d", "seresnext101_32x4d"),
    ("resnetaa50d", "seresnetaa50d"),
]
CBAM_HOSTS = ["resnet18", "resnet34", "resnet50", "resnet26d", "resnext50_32x4d"]


def check_same_network(host: nn.Module, native: nn.Module) -> None:
    """Copy the native network's weights into the operated host and compare, in both modes.

    In float64, as a product of matrices may round differently from timm's convolution.
    """
    host, native = host.double(), native.double()
    state = {key.replace(".se.", ".attn."): value for key, value in native.state_dict().items()}
    host.load_state_dict(state, strict=True)
    for mode in (False, True):
        host.train(mode)
        native.train(mode)
        x = torch.randn(2, 3, 64, 64, dtype=torch.double)
        torch.testing.assert_close(host(x), native(x), rtol=1e-9, atol=1e-9)
    for key, value in native.state_dict().items():
        if "running" in key:
            copied = host.state_dict()[key.replace(".se.", ".attn.")]
            torch.testing.assert_close(copied, value, rtol=1e-9, atol=1e-9)


def shaken(model: nn.Module) -> nn.Module:
    """Give the norms what they have in a trained net: timm starts the last weights at zero.

    Statistics that are not the maps' own let these grow from block to block, until in a deep net
    a change of the input's last bit shows in the ninth digit of the logits.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    update_bn([torch.randn(8, 3, 64, 64)], model)
    return model


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("plain", "native"), SE_PAIRS, ids=lambda name: name)
def test_squeeze_and_excitation_as_timm_builds_it(plain, native):
    torch.manual_seed(0)
    host = attn_surgery.apply(timm.create_model(plain), init="paper", **TIMM_SE)
    check_same_network(host, shaken(timm.create_model(native)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CBAM_HOSTS)
def test_cbam_as_timm_builds_it(name):
    torch.manual_seed(0)
    host = attn_surgery.apply(timm.create_model(name), init="paper", **TIMM_CBAM)
    for module in host.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_features == 1:
            module.momentum = 0.1  # timm's, where the official code has 0.01
    native = timm.create_model(name, block_args={"attn_layer": "cbam"})
    check_same_network(host, shaken(native))


@pytest.mark.parametrize(
    ("name", "attention", "options", "params"),
    [
        ("resnet18", None, {}, 11_689_512),
        ("resnet18", "se", {}, 11_778_592),
        ("resnet18", "cbam", {}, 11_779_392),
        ("resnet50", None, {}, 25_557_032),
        ("resnet50", "se", {}, 28_088_024),
        ("resnet50", "cbam", {}, 28_089_624),
        ("resnet50", "se", {"bias": False}, 28_071_976),
        ("resnext50_32x4d", None, {}, 25_028_904),
        ("resnext50_32x4d", "se", {}, 27_559_896),
        ("resnext50_32x4d", "cbam", {}, 27_561_496),
    ],
)
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_parameter_counts_of_the_papers(name, attention, options, params, init):
    with torch.device("meta"):
        host = torchvision.models.get_model(name)
    if attention:
        attn_surgery.apply(host, attention, init=init, **options)
    assert sum(parameter.numel() for parameter in host.parameters()) == params
