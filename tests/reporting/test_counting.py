"""Counts against independent counters, hand-derived formulas and published numbers."""

import copy
import logging
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attn_surgery
from attn_surgery.attention import build
from attn_surgery.host.copies import meta_copy
from attn_surgery.host.inputs import Input, guess_input
from attn_surgery.host.load import load_model
from attn_surgery.reporting.costs import count_params
from attn_surgery.reporting.counting.data_dependent import EverythingPasses
from attn_surgery.reporting.counting.forward_work import count_macs, count_work
from attn_surgery.reporting.counting.operator_costs import Work, _kind
from attn_surgery.reporting.counting.saved_activations import count_saved_bytes


@pytest.mark.parametrize(
    ("model", "size", "macs"),
    [
        (nn.Conv1d(4, 8, 3), (4, 12), 4 * 8 * 3 * 10),
        (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 5), 8 * 9 * 25),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 2 * 3 * 8 * 27),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), 2 * 3 * 4 * 16),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 60),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (3, 8, 8), 0),
        (nn.Conv2d(4, 8, 1).half(), (4, 3, 3), 4 * 8 * 9),
    ],
)
def test_macs(model, size, macs):
    assert count_macs(model, size) == macs


def test_macs_of_a_model_that_hands_a_view_of_a_parameter_to_a_child():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 4))
            self.child = nn.Linear(4, 5)

        def forward(self, x):
            return x.sum() + self.child(self.token.expand(2, -1))

    assert count_macs(Outer(), (3, 2, 2)) == 40


def test_macs_of_token_attention():
    # torchvision's own number is 17.56 G (ViT-B/16, Q @ K and A @ V included)
    macs = count_macs(load_model("torchvision/vit_b_16"), (3, 224, 224))
    assert macs == 17_563_828_224


# Other counters

FAMILIES = [
    *("resnet18", "resnext50_32x4d", "regnety_002", "densenet121", "vovnet39a", "mobilenetv2_100"),
    *(
        "mobilenetv3_small_100",
        "efficientnet_b0",
        "ghostnet_100",
        "mnasnet_small",
        "hrnet_w18_small",
    ),
    *("res2net50_26w_4s", "selecsls42b", "convnext_atto", "resnetv2_50", "dla34", "xception41"),
    *("repvgg_a0", "inception_v3", "edgenext_xx_small"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_other_counters(name):
    size = (3, 96, 96) if name != "inception_v3" else (3, 128, 128)
    model = load_model(f"timm/{name}", device=None).eval()
    counted = count_macs(model, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size))
    assert counted == counter.get_total_flops() // 2
    assert counted == fvcore_macs(model, size)


def fvcore_macs(model, size):
    """fvcore's numbers of its convolutions and matrix products: it counts norms and pools, too."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import scripts a function, its analysis traces
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, torch.zeros(1, *size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    products = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum")
    return sum(by_operator[name] for name in products)


@pytest.mark.parametrize(
    "name", ["torchvision/resnet50", "torchvision/efficientnet_b0", "torchvision/vit_b_16"]
)
def test_batch_and_precision_leave_the_macs(name):
    assert count_macs(load_model(name), (3, 224, 224)) == count_macs(
        load_model(name).bfloat16(), (3, 224, 224)
    )


# Elementwise operations and bytes

SHAPES = [(32, 100), (48, 12, 20), (64, 4, 6, 10)]


def _work(model, shape):
    return count_work(model, shape).total


def map_of(shape):
    """Channels, positions, and elements of a map."""
    return shape[0], math.prod(shape[1:]), math.prod(shape)


def se_work(shape, *, init):
    """Squeeze, two layers with a ReLU between, a sigmoid (doubled for the identity), the scale."""
    channels, _, elements = map_of(shape)
    hidden = channels // 16
    doubled = init == "identity"
    operations = elements + hidden + channels + doubled * channels + elements
    moved = (elements + channels) + 2 * hidden + 2 * channels + doubled * 2 * channels
    moved += (elements + channels) + elements
    return Work(2 * channels * hidden, operations, 4 * moved)


def cam_work(shape, *, init):
    """As SE, but two pools side by side through one MLP, and the two outputs added."""
    channels, _, elements = map_of(shape)
    hidden = channels // 16
    doubled = init == "identity"
    operations = 2 * (elements + hidden) + channels + (1 + doubled) * channels + elements
    moved = 2 * (elements + channels + 2 * hidden) + (1 + doubled) * 2 * channels
    moved += 2 * 2 * channels + 3 * channels  # cat, add
    moved += (elements + channels) + elements
    return Work(4 * channels * hidden, operations, 4 * moved)


def sam_work(shape, *, init):
    """Maximum and mean over channels, both copied, 7^d convolution, norm, gate, scale."""
    _, positions, elements = map_of(shape)
    taps = 2 * 7 ** (len(shape) - 1)
    doubled = init == "identity"
    operations = 2 * elements + positions + (1 + doubled) * positions + elements
    moved = 2 * (elements + positions)  # the two reductions
    moved += 2 * positions + 2 * positions  # cat
    moved += 2 * positions + 4  # the norm: weight, bias, mean and variance of one map
    moved += (1 + doubled) * 2 * positions
    moved += (elements + positions) + elements
    return Work(taps * positions, operations, 4 * moved)


def cbam_work(shape, *, init):
    return cam_work(shape, init=init) + sam_work(shape, init=init)


@pytest.mark.parametrize("init", ["identity", "paper"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "formula"),
    [("se", se_work), ("cam", cam_work), ("sam", sam_work), ("cbam", cbam_work)],
)
def test_attention_equals_its_formula(name, formula, shape, init):
    attention = build(name, shape[0], spatial_dims=len(shape) - 1, init=init)
    assert _work(attention, shape) == formula(shape, init=init)


def test_bytes_follow_the_dtype():
    single, half = build("cbam", 48), build("cbam", 48).bfloat16()
    shape = (48, 12, 20)
    assert _work(single, shape).bytes_moved == 2 * _work(half, shape).bytes_moved
    assert _work(single, shape).elementwise_ops == _work(half, shape).elementwise_ops


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# one input of 4 x 6 x 10 is 240 elements, 960 bytes
@pytest.mark.parametrize(
    ("function", "operations", "moved"),
    [
        (lambda x: x + 1, 240, 1920),
        (lambda x: x * x, 240, 1920),  # each tensor once
        (lambda x: x.relu_(), 240, 1920),
        (lambda x: x.mean(1), 240, 960 + 240),
        (lambda x: x.sum(), 240, 960 + 4),
        (lambda x: F.avg_pool2d(x, 2), 60 * 4, 960 + 240),
        (lambda x: F.max_pool2d(x, 3, 2, 1), 60 * 9, 960 + 240 + 480),  # values and indices
        (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), 4 * 8 * 12, 960 + 4 * 48),
        (lambda x: x.softmax(1), 480, 1920),
        (lambda x: F.layer_norm(x, (10,)), 480, 1920 + 2 * 4 * 24),  # mean and rstd of 24 rows
        (lambda x: F.instance_norm(x), 480, 1920 + 2 * 4 * 4),
        (lambda x: F.batch_norm(x, torch.ones(4), torch.ones(4)), 240, 1920 + 2 * 32),  # ones, too
        (lambda x: F.interpolate(x, scale_factor=2.0), 960, 960 + 3840),
        (lambda x: x.view(1, -1).t().unsqueeze(0)[:, :5], 0, 0),
        (lambda x: torch.cat([x, x], 1), 0, 960 + 1920),
        (lambda x: x.transpose(2, 3).contiguous(), 0, 1920),
        (lambda x: F.pad(x, (1, 1)), 0, 960 + 1152),
        (lambda x: x[:, torch.tensor([0, 2], device="meta")], 0, 480 + 480 + 16),
        (lambda x: x[:, :1].expand(-1, 4, -1, -1) + x, 240, 240 + 960 + 960),
        (lambda x: torch.zeros_like(x), 0, 960),
        (lambda x: F.relu6(x * 1, inplace=True), 480, 2 * 1920),
        (lambda x: F.leaky_relu(x * 1, inplace=True), 480, 2 * 1920),
        (lambda x: 1 - (x * 1).abs_(), 720, 3 * 1920),
        (lambda x: torch.count_nonzero(x, 1), 240, 960 + 8 * 60),
    ],
)
def test_one_operator(function, operations, moved):
    counted = count_work(Apply(function), (4, 6, 10))
    work = counted.total
    assert (work.macs, work.elementwise_ops, work.bytes_moved) == (0, operations, moved)
    assert not counted.unknown


def in_place_and_not():
    """Yield every operator of torch that has a twin which works in place, and the twin."""
    for name in dir(Tensor):
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        twins = getattr(torch.ops.aten, name, None) if name.endswith("_") else None
        if packet is not None and twins is not None and not name.startswith("_"):
            for overload in set(packet.overloads()) & set(twins.overloads()):
                yield getattr(packet, overload), getattr(twins, overload)


def test_what_works_in_place_is_counted_alike():
    pairs = list(in_place_and_not())
    assert len(pairs) > 100
    for plain, in_place in pairs:
        known, twin = _kind(plain), _kind(in_place)
        assert twin.rule is known.rule, in_place
        assert known.unknown or not twin.unknown, in_place


def test_products_in_place():
    def product(x):
        return x.new_zeros(4, 4).addmm_(x[0], x[0].t())

    assert count_macs(Apply(product), (4, 10)) == 4 * 4 * 10


def test_an_unknown_operator_is_counted_and_named():
    counted = count_work(Apply(torch.fft.fft2), (4, 6, 10))
    assert counted.total.elementwise_ops == 240
    assert "aten::_fft" in counted.unknown[0]


# What backward needs


def se_saved(shape):
    """x for the scale's gradient, the inputs of both layers, and the gate."""
    channels, _, elements = map_of(shape)
    hidden = channels // 16
    return 4 * (elements + channels + hidden + channels)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_bytes_of_se(shape):
    # The input needs a gradient as it does inside of a network.
    attention = build("se", shape[0], spatial_dims=len(shape) - 1, init="paper")
    net = nn.Sequential(Scale(), attention)
    assert count_saved_bytes(meta_copy(net), Input((shape,))) == 4 * math.prod(shape) + se_saved(
        shape
    )


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


def test_saved_bytes_share_memory_and_leave_parameters_out():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
    saved = count_saved_bytes(meta_copy(net), Input(((3, 5, 5),)))
    assert saved == 4 * (3 * 25 + 8 * 25)  # both inputs; the ReLU's output is one of them


@pytest.mark.parametrize("attention", [None, "se", "cbam"])
def test_saved_bytes_against_real_tensors(attention):
    net = torchvision.models.resnet18()
    if attention:
        attn_surgery.apply(net, attention)
    kept = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(torch.randn(2, 3, 64, 64))
    total = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    del out
    assert count_saved_bytes(meta_copy(net), Input(((3, 64, 64),))) == total // 2


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_attention_keeps_one_map_a_site(attention):
    host = torchvision.models.resnet50()
    operated = attn_surgery.apply(copy.deepcopy(host), attention)
    given = Input(((3, 224, 224),))
    added = count_saved_bytes(meta_copy(operated), given) - count_saved_bytes(
        meta_copy(host), given
    )
    maps = 4 * sum(
        count * channels * side**2
        for count, channels, side in ((3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7))
    )
    assert maps < added < 1.03 * maps  # what is said of channels and positions is small


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(8), (4, 8, 5, 6)),
    "instance": (lambda: nn.InstanceNorm2d(8), (4, 8, 5, 6)),
    "group": (lambda: nn.GroupNorm(2, 8), (4, 8, 5, 6)),
    "layer": (lambda: nn.LayerNorm([5, 6]), (4, 8, 5, 6)),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_answered_as_they_are_computed(name, dtype, train):
    """Shapes, strides and dtypes of results, and what is saved, as on the CPU."""
    make, shape = NORMS[name]
    seen = {}
    for device in ("cpu", "meta"):
        norm = make().to(device, dtype).train(train)
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor
        )
        x = torch.ones(shape, dtype=dtype, device=device)
        x = x.to(memory_format=torch.channels_last) if name == "batch" else x
        with EverythingPasses(), hooks:
            out = norm(x)
        told = [(tuple(each.shape), each.dtype) for each in kept if each.numel()]
        seen[device] = tuple(out.shape), out.stride(), out.dtype, sorted(told, key=str)
        del out
    assert seen["cpu"] == seen["meta"]


# Blocks


def test_blocks_add_up_nested_and_called_by_forward():
    class Inner(nn.Module):
        def forward(self, x):
            return x + 1

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner.forward(x * 2) * 3

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.outer = Outer()

        def forward(self, x):
            return self.outer(x) - 1

    counted = count_work(Net(), (4, 5), ["outer", "outer.inner"])
    operations = {path: work.elementwise_ops for path, work in counted.by_block.items()}
    assert operations == {None: 20, "outer": 40, "outer.inner": 20}
    assert counted.total.elementwise_ops == 80
    with pytest.raises(AttributeError):
        count_work(Net(), (4, 5), ["nowhere"])


# Models whose operators depend on the data

DETECTION = torchvision.models.list_models(torchvision.models.detection)
OPTICAL_FLOW = torchvision.models.list_models(torchvision.models.optical_flow)


def test_all_are_listed():
    assert (len(DETECTION), len(OPTICAL_FLOW)) == (12, 2)


# torchvision counts on a photograph, which gives these fewer proposals, masks or people than the
# upper bound has.
FEWER = {name for name in DETECTION if "fasterrcnn_mobilenet" in name} | {
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", DETECTION)
def test_detection(name):
    published = torchvision.models.get_model_weights(name)["DEFAULT"].meta["_ops"]
    model = load_model(f"torchvision/{name}")
    work = count_work(model, guess_input(model))
    assert "aten::nonzero" in work.assumed
    assert work.unknown == ()
    macs = work.total.macs / 1e9
    if name in FEWER:
        assert macs > published
    else:
        assert macs == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("name", OPTICAL_FLOW)
def test_optical_flow_is_counted(name):
    model = load_model(f"torchvision/{name}")
    counted = count_work(model, guess_input(model))
    assert len(guess_input(model).shapes) == 2
    assert counted.total.macs > 1e9
    assert not counted.assumed


def test_lists_of_images_and_keywords():
    model = load_model("torchvision/ssdlite320_mobilenet_v3_large")
    shape = count_macs(model, (3, 320, 320))
    assert count_macs(model, lambda: [torch.zeros(3, 320, 320)]) == shape
    assert count_macs(model, lambda: ([torch.zeros(3, 320, 320)],)) == shape
    assert count_macs(model, lambda: {"images": [torch.zeros(3, 320, 320)]}) == shape
    assert count_macs(model, lambda: [torch.zeros(3, 320, 320)] * 2) == pytest.approx(2 * shape)


# Copies


def test_meta_copy_shares_what_the_model_shares():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    copied = meta_copy(model)
    assert copied[1].weight is copied[0].weight
    assert copied[1].weight is not model[1].weight
    assert not copied[0].bias.requires_grad
    assert copied[1].bias.requires_grad
    assert count_params(copied) == count_params(model) == 16 + 4 + 4
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_meta_copy_takes_tensors_that_deepcopy_refuses():
    model = nn.Linear(2, 2)
    model.scaled = model.weight * 2  # has a history, as torch.nn.utils.weight_norm's weight
    assert meta_copy(model).scaled.device.type == "meta"


def test_meta_copy_keeps_layout_and_dtype():
    model = nn.Conv2d(3, 8, 3, dtype=torch.bfloat16)
    model.weight.data = model.weight.data.contiguous(memory_format=torch.channels_last)
    weight = meta_copy(model).weight
    assert weight.dtype is torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)
