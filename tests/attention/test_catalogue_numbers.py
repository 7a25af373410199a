"""The catalogue's numbers: parameter counts, the papers' equations in numpy, and timm's own."""

import inspect
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from test_attention import SPATIAL, C, one_thread, perturbed, same_bits, seeded
from timm.layers.create_attn import create_attn
from torch import Tensor, nn

import attn_surgery
from attn_surgery.attention import (
    BAM,
    GCT,
    SCSE,
    SGE,
    SRM,
    Adapter,
    Scale,
    SimAM,
    TripletAttention,
    build,
)
from attn_surgery.attention.construction.from_timm import TIMM
from attn_surgery.attention.construction.identity_start import IdentityStart

__all__ = ["one_thread", "seeded"]

Array = Any  # of numpy; its stubs know too little of `axis` for this
RESNET_50 = 25_557_032
WIDTHS = (256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3
TIMM_2D = [name for name in TIMM if name in attn_surgery.available() and name != "ge"]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


class TestCounts:
    """Each by a formula in C, and the published totals."""

    @pytest.mark.parametrize("c", [16, 64, 100, 256])
    @pytest.mark.parametrize("d", [1, 2, 3])
    def test_by_hand(self, c: int, d: int):
        h, k = c // 16, 3**d
        channel = c * h + h + 2 * h + h * c + c
        spatial = c * h + h + 2 * h + 2 * (k * h * h + h + 2 * h) + h + 1
        assert count(BAM(c, spatial_dims=d)) == channel + spatial
        assert count(SCSE(c, spatial_dims=d)) == c * c // 2 * 2 + c // 2 + c + c + 1
        assert count(SCSE(c, bias=False, spatial_dims=d)) == c * c // 2 * 2 + c
        assert count(SimAM(c, spatial_dims=d)) == 0
        assert count(SRM(c, spatial_dims=d)) == 4 * c
        assert count(GCT(c, spatial_dims=d)) == 3 * c
        assert count(SGE(c, spatial_dims=d)) == 2 * math.gcd(64, c)
        assert count(Scale(c, spatial_dims=d)) == 2 * c
        assert count(Scale(c, shift=False, spatial_dims=d)) == c
        assert count(Adapter(c, spatial_dims=d)) == 2 * c * h + c
        assert count(Adapter(c, kind="channel", spatial_dims=d)) == c * k + c
        assert count(TripletAttention(c)) == 3 * (2 * 49 + 2)
        assert count(TripletAttention(c, spatial=False)) == 2 * (2 * 49 + 2)

    @pytest.mark.parametrize(
        ("attention", "total"),
        [("srm", 25_617_448), ("triplet", 25_561_832), ("eca", RESNET_50 + 86)],
    )
    def test_published_totals_of_resnet_50(self, attention: str, total: int):
        with torch.device("meta"):
            host = torchvision.models.resnet50()
        attn_surgery.apply(host, attention, init="paper")
        assert count(host) == total
        attn_surgery.remove(host)
        attn_surgery.apply(host, attention)
        assert count(host) == total + len(WIDTHS) * (attention == "eca")  # one alpha a site

    def test_bam_between_the_stages_of_resnet_50(self):
        with torch.device("meta"):
            host = torchvision.models.resnet50()
            keys = list(host.state_dict())
            for stage, width in ((host.layer1, 256), (host.layer2, 512), (host.layer3, 1024)):
                stage.append(build("bam", width, init="paper"))
        assert count(host) == 25_915_099
        assert [key for key in host.state_dict() if "_att." not in key] == keys

    def test_counts_at_the_sites_of_resnet_50(self):
        """The same totals from the modules alone."""
        built = {name: [build(name, c, init="paper") for c in WIDTHS] for name in ("srm", "gct")}
        assert RESNET_50 + count(*built["srm"]) == 25_617_448
        assert count(*built["gct"]) == 3 * sum(WIDTHS) == 45_312


def sigmoid(t: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * t))


def relu(t: Array) -> Array:
    return np.where(t > 0, t, 0.0)


def array(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return tensor.detach().numpy()


def column(vector: Array, rank: int) -> Array:
    """(C) -> (1, C, 1, ...) with ``rank`` dimensions."""
    return vector.reshape(1, -1, *[1] * (rank - 2))


def plain_conv(x: Array, layer: Any, dilation: int = 1) -> Array:
    """Sum the shifted maps, one for each element of the kernel; the map keeps its size."""
    weight, sizes = array(layer.weight), x.shape[2:]
    kernel = weight.shape[2:]
    margins = [(dilation * (k // 2),) * 2 for k in kernel]
    padded = np.pad(x, [(0, 0), (0, 0), *margins])
    total = np.zeros((x.shape[0], weight.shape[0], *sizes))
    for offset in np.ndindex(*kernel):
        window = [slice(dilation * o, dilation * o + s) for o, s in zip(offset, sizes, strict=True)]
        shifted = padded[(slice(None), slice(None), *window)]
        total += np.einsum("nc...,oc->no...", shifted, weight[(slice(None), slice(None), *offset)])
    return total if layer.bias is None else total + column(array(layer.bias), x.ndim)


def plain_norm(x: Array, layer: Any) -> Array:
    """Batch norm: of the batch in train mode, else with the running statistics."""
    if layer.training:
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axes), ((x - column(x.mean(axes), x.ndim)) ** 2).mean(axes)
    else:
        mean, var = array(layer.running_mean), array(layer.running_var)
    scaled = (x - column(mean, x.ndim)) / np.sqrt(column(var, x.ndim) + layer.eps)
    return scaled * column(array(layer.weight), x.ndim) + column(array(layer.bias), x.ndim)


def plain_linear(x: Array, layer: Any) -> Array:
    return x @ array(layer.weight).reshape(layer.weight.shape[:2]).T + array(layer.bias)


def plain_bam(bam: Any, x: Array, combine: str, dilation: int) -> Array:
    channel, spatial = bam.channel_att.gate_c, bam.spatial_att.gate_s
    pooled = x.reshape(*x.shape[:2], -1).mean(2)
    hidden = relu(plain_norm(plain_linear(pooled, channel[0]), channel[1]))
    by_channel = plain_linear(hidden, channel[3]).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    features = relu(plain_norm(plain_conv(x, spatial[0]), spatial[1]))
    for index in (3, 6):
        features = plain_conv(features, spatial[index], dilation)
        features = relu(plain_norm(features, spatial[index + 1]))
    by_position = plain_conv(features, spatial[9])
    if combine == "sum":
        gate = sigmoid(by_channel + by_position)
    else:
        gate = sigmoid(by_channel * by_position)
    return x + x * gate


def plain_scse(scse: Any, x: Array, combine: str) -> Array:
    z = x.reshape(*x.shape[:2], -1).mean(2)
    gate = sigmoid(plain_linear(relu(plain_linear(z, scse.cse.fc1)), scse.cse.fc2))
    by_channel = gate.reshape(*gate.shape, *[1] * (x.ndim - 2)) * x
    by_position = sigmoid(plain_conv(x, scse.sse)) * x
    if combine == "add":
        return by_channel + by_position
    return np.where(by_channel > by_position, by_channel, by_position)


def plain_simam(_: Any, x: Array, lam: float, less: int) -> Array:
    out = np.empty_like(x)
    for n, c in np.ndindex(*x.shape[:2]):
        channel = x[n, c]
        mean = channel.sum() / channel.size
        var = ((channel - mean) ** 2).sum() / (channel.size - less)
        energy = 4 * (var + lam) / ((channel - mean) ** 2 + 2 * var + 2 * lam)
        out[n, c] = sigmoid(1 / energy) * channel
    return out


def plain_triplet(triplet: Any, x: Array, branches: Sequence[str]) -> Array:
    """Pool over the axis, convolve over the other two in the order that the branch has them."""
    total = np.zeros_like(x)
    for name in branches:
        to_channels = {"cw": (0, 2, 1, 3), "hc": (0, 3, 2, 1), "hw": (0, 1, 2, 3)}[name]
        turned, conv = x.transpose(to_channels), getattr(triplet, name).conv
        pooled = np.stack([turned.max(1), turned.mean(1)], 1)
        gated = turned * sigmoid(plain_norm(plain_conv(pooled, conv[0]), conv[1]))
        total += gated.transpose(to_channels)  # each of the three turns is its own inverse
    return total / len(branches)


def plain_srm(srm: Any, x: Array) -> Array:
    flat = x.reshape(*x.shape[:2], -1)
    mean = flat.sum(2) / flat.shape[2]
    std = np.sqrt(((flat - mean[:, :, None]) ** 2).sum(2) / flat.shape[2])
    weights = array(srm.cfc)
    gate = sigmoid(plain_norm(mean * weights[:, 0] + std * weights[:, 1], srm.bn))
    return gate.reshape(*gate.shape, *[1] * (x.ndim - 2)) * x


def plain_gct(gct: Any, x: Array, epsilon: float) -> Array:
    alpha, gamma, beta = (array(getattr(gct, n)).ravel() for n in ("alpha", "gamma", "beta"))
    s = alpha * np.sqrt((x.reshape(*x.shape[:2], -1) ** 2).sum(2) + epsilon)
    normed = math.sqrt(x.shape[1]) * s / np.sqrt((s**2).sum(1, keepdims=True) + epsilon)
    gate = 1 + np.tanh(gamma * normed + beta)
    return gate.reshape(*gate.shape, *[1] * (x.ndim - 2)) * x


def plain_sge(sge: Any, x: Array, groups: int) -> Array:
    out = np.empty_like(x)
    width = x.shape[1] // groups
    weight, bias = array(sge.weight).ravel(), array(sge.bias).ravel()
    for n, g in np.ndindex(x.shape[0], groups):
        part = slice(g * width, (g + 1) * width)
        features = x[n, part].reshape(width, -1)  # (C / G, positions)
        c = features.mean(1) @ features
        c = (c - c.mean()) / (np.sqrt(((c - c.mean()) ** 2).mean()) + 1e-5)
        gate = sigmoid(weight[g] * c + bias[g])
        out[n, part] = (features * gate).reshape(x[n, part].shape)
    return out


def plain_scale(scale: Any, x: Array) -> Array:
    shift = 0 if scale.shift is None else column(array(scale.shift).ravel(), x.ndim)
    return column(array(scale.scale).ravel(), x.ndim) * x + shift


def plain_adapter(adapter: Any, x: Array, kind: str) -> Array:
    if kind == "bottleneck":
        return x - plain_conv(plain_conv(x, adapter.down), adapter.up)
    kernel, bias = array(adapter.up.weight), array(adapter.up.bias)
    out = np.empty_like(x)
    for c in range(x.shape[1]):  # each channel by a layer of its own
        layer = SimpleNamespace(weight=torch.tensor(kernel[c : c + 1]), bias=None)
        out[:, c] = x[:, c] - plain_conv(x[:, c : c + 1], layer)[:, 0] - bias[c]
    return out


Plain = Callable[..., Array]
ALL = (1, 2, 3)
EQUATIONS: dict[str, tuple[type[nn.Module], dict[str, Any], Plain, dict[str, Any], Any]] = {
    "bam": (BAM, {}, plain_bam, {"combine": "sum", "dilation": 4}, ALL),
    "bam-product": (
        BAM,
        {"combine": "product", "dilation": 2, "reduction": 8},
        plain_bam,
        {"combine": "product", "dilation": 2},
        ALL,
    ),
    "scse": (SCSE, {}, plain_scse, {"combine": "add"}, ALL),
    "scse-max": (SCSE, {"combine": "max", "reduction": 4}, plain_scse, {"combine": "max"}, ALL),
    "simam": (SimAM, {}, plain_simam, {"lam": 1e-4, "less": 0}, ALL),
    "simam-code": (
        SimAM,
        {"lam": 0.1, "unbiased": True},
        plain_simam,
        {"lam": 0.1, "less": 1},
        ALL,
    ),
    "triplet": (TripletAttention, {}, plain_triplet, {"branches": ("cw", "hc", "hw")}, None),
    "triplet-of-two": (
        TripletAttention,
        {"kernel_size": 3, "spatial": False},
        plain_triplet,
        {"branches": ("cw", "hc")},
        None,
    ),
    "srm": (SRM, {}, plain_srm, {}, ALL),
    "gct": (GCT, {}, plain_gct, {"epsilon": 1e-5}, ALL),
    "gct-epsilon": (GCT, {"epsilon": 10}, plain_gct, {"epsilon": 10}, ALL),
    "sge": (SGE, {}, plain_sge, {"groups": C}, ALL),
    "sge-in-four": (SGE, {"groups": 4}, plain_sge, {"groups": 4}, ALL),
    "scale": (Scale, {}, plain_scale, {}, ALL),
    "scale-alone": (Scale, {"shift": False}, plain_scale, {}, ALL),
    "adapter": (Adapter, {}, plain_adapter, {"kind": "bottleneck"}, ALL),
    "adapter-channel": (
        Adapter,
        {"kind": "channel"},
        plain_adapter,
        {"kind": "channel"},
        ALL,
    ),
}
CASES = [(name, d) for name, case in EQUATIONS.items() for d in case[-1] or (2,)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "spatial_dims"), CASES)
def test_the_papers_equations(name: str, spatial_dims: int, training: bool):
    kind, options, plain, plain_options, dims = EQUATIONS[name]
    start = {"init": "paper"} if "init" in inspect.signature(kind).parameters else {}
    dims_option = {"spatial_dims": spatial_dims} if dims else {}
    attention = perturbed(kind(C, **options, **dims_option, **start)).double().train(training)
    for module in attention.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, C, *SPATIAL[spatial_dims], dtype=torch.float64) * 3
    expected = plain(attention, array(x), **plain_options)
    assert not np.allclose(expected, array(x), atol=0.1)
    np.testing.assert_allclose(array(attention(x)), expected, rtol=1e-9, atol=1e-9)


def test_the_papers_starts():
    """SRM and SGE start as one gate for all, GCT as the identity, the norms as any norm."""
    x = torch.randn(3, C, 5, 6)
    of_one = 1 / (1 + math.exp(-1))
    for name, gate in {"srm": 0.5, "sge": of_one, "gct": 1.0}.items():
        torch.testing.assert_close(build(name, C, init="paper")(x), gate * x)
    scale = build("scale", 10_000, init="paper")
    for part, mean in (("scale", 1.0), ("shift", 0.0)):
        own = scale.get_parameter(part)
        assert own.mean().item() == pytest.approx(mean, abs=1e-3)
        assert own.std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("bam", "triplet", "srm"):
        norms = [m for m in build(name, C, init="paper").modules() if "BatchNorm" in repr(type(m))]
        assert norms
        assert all(norm.get_parameter("weight").eq(1).all() for norm in norms)


@pytest.mark.parametrize("name", ["bam", "srm", "gct", "sge", "triplet"])
def test_state_has_the_names_of_the_official_code(name: str):
    """Read off the authors' files: BAM's and SRM's modules, GCT.py, SGE's and triplet's."""
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layer = ["weight", "bias"]
    conv_norm = ["conv.conv.weight", *[f"conv.bn.{each}" for each in norm]]
    di = [
        f"gate_s_{kind}_di_{i}.{each}"
        for i in (0, 1)
        for kind, own in (("conv", layer), ("bn", norm))
        for each in own
    ]
    expected = {
        "bam": [
            *[f"channel_att.gate_c.gate_c_fc_0.{each}" for each in layer],
            *[f"channel_att.gate_c.gate_c_bn_1.{each}" for each in norm],
            *[f"channel_att.gate_c.gate_c_fc_final.{each}" for each in layer],
            *[f"spatial_att.gate_s.gate_s_conv_reduce0.{each}" for each in layer],
            *[f"spatial_att.gate_s.gate_s_bn_reduce0.{each}" for each in norm],
            *[f"spatial_att.gate_s.{each}" for each in di],
            *[f"spatial_att.gate_s.gate_s_conv_final.{each}" for each in layer],
        ],
        "srm": ["cfc", *[f"bn.{each}" for each in norm]],
        "gct": ["alpha", "gamma", "beta"],
        "sge": ["weight", "bias"],
        "triplet": [f"{branch}.{key}" for branch in ("cw", "hc", "hw") for key in conv_norm],
    }
    assert sorted(build(name, 64, init="paper").state_dict()) == sorted(expected[name])


class TestTimm:
    """timm's attention is timm's: same class, same state, same output."""

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("name", TIMM_2D)
    def test_output_is_that_of_create_attn(self, name: str, training: bool):
        theirs = perturbed(create_attn(name, C)).train(training)
        ours = build(name, C, init="paper").train(training)
        assert isinstance(ours, type(theirs))
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(3, C, 6, 7)
        assert same_bits(ours(x), theirs(x))

    @pytest.mark.parametrize("name", TIMM_2D)
    def test_identity_start_is_around_timms_and_leads_to_it(self, name: str):
        theirs = perturbed(create_attn(name, C)).eval()
        ours = build(name, C).eval()
        x = torch.randn(3, C, 6, 7)
        assert isinstance(ours, IdentityStart)
        assert ours.alpha == (name == "nl")  # its last norm starts at zero: f(x) is x already
        ours.f.load_state_dict(theirs.state_dict())
        nn.init.ones_(ours.alpha)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", TIMM_2D)
    @pytest.mark.parametrize("sides", [(1, 1), (1, 9), (13, 2), (7, 7), (8, 16)])
    def test_maps_of_any_size(self, name: str, sides: tuple[int, int]):
        x = torch.randn(2, C, *sides)
        assert build(name, C, init="paper").eval()(x).shape == x.shape

    def test_those_left_out_need_the_size_of_the_map(self):
        with pytest.raises(AssertionError, match="concrete feature size"):
            create_attn("bottleneck", C)
        for name, side in {"halo": 14, "bat": 8}.items():
            attention: Any = create_attn(name, C)
            assert attention(torch.randn(2, C, 56, 56)).shape == (2, C, 56, 56)
            with pytest.raises(AssertionError):
                attention(torch.randn(2, C, side, side))
            assert name not in attn_surgery.available()

    def test_options_are_timms(self):
        narrow = build("coord", 64, init="paper", options={"rd_channels": 5})
        assert narrow.get_submodule("conv1").out_channels == 5
        assert build("ecam", 64, init="paper").get_submodule("conv2") is not None

    @pytest.mark.parametrize("name", [name for name in TIMM_2D if name != "splat"])
    def test_an_option_that_timm_would_drop_is_refused(self, name: str):
        """Some of timm's take ``**_`` and forget it."""
        with pytest.raises(attn_surgery.SurgeryError, match="has no option 'reduktion'"):
            build(name, 64, options={"reduktion": 4})
