"""The costs of attention: golden counts, an untouched host, and rows that fail on their own."""

import importlib
import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from attn_surgery.counting import count_macs, count_params, guess_input_size, meta_copy
from attn_surgery.errors import SurgeryError
from attn_surgery.models import load_model
from attn_surgery.reporting import Report, Row, report

# The package's `report` may be the function; this is the module.
report_module = importlib.import_module("attn_surgery.reporting")


class Block(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + x).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = Block()

    def forward(self, x):
        return self.block(self.stem(x))


# parameters of the host, with SE, with CBAM (defaults); SE without biases
GOLDEN_PARAMS = {
    "torchvision/resnet18": (11_689_512, 11_778_592, 11_779_392),
    "torchvision/resnet50": (25_557_032, 28_088_024, 28_089_624),
    "torchvision/resnext50_32x4d": (25_028_904, 27_559_896, 27_561_496),
    "timm/resnet50": (25_557_032, 28_088_024, 28_089_624),
}


@pytest.mark.parametrize("name", GOLDEN_PARAMS)
def test_golden_params(name):
    rows = report(load_model(name)).rows
    assert [row.attention for row in rows] == [None, "se", "cbam"]
    assert tuple(row.params for row in rows) == GOLDEN_PARAMS[name]
    assert all(row.error is None for row in rows)


def test_golden_params_without_biases():
    rows = report(load_model("torchvision/resnet50"), "se", bias=False).rows
    assert rows[1].params == 28_071_976


def test_golden_macs():
    host, se, cbam = report(load_model("torchvision/resnet50")).rows
    assert host.macs == 4_089_184_256
    # Two layers of C * C/16 a block: the parameters of SE without biases.
    mlp = 28_071_976 - 25_557_032
    assert se.macs == host.macs + mlp
    # The MLP runs for both pools, the 7x7 convolution of two maps once for every position.
    positions = 3 * 56**2 + 4 * 28**2 + 6 * 14**2 + 3 * 7**2
    assert cbam.macs == host.macs + 2 * mlp + 2 * 7 * 7 * positions


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


# The host


def test_host_is_untouched():
    torch.manual_seed(0)
    host = Net().train()
    host.block.eval()
    calls = []
    host.register_forward_hook(lambda *_: calls.append(1))
    before = {key: value.clone() for key, value in host.state_dict().items()}
    modules = dict(host.named_modules())
    modes = {name: module.training for name, module in modules.items()}
    classes = {name: type(module) for name, module in modules.items()}
    random_state = torch.get_rng_state()

    report(host, input_size=(3, 8, 8))

    assert {name: module.training for name, module in host.named_modules()} == modes
    assert {name: type(module) for name, module in host.named_modules()} == classes
    assert dict(host.named_modules()) == modules
    after = host.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.requires_grad and p.grad is None for p in host.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


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


def test_a_model_that_cannot_be_copied():
    model = Net()
    model.stream = (line for line in ())  # pyright: ignore[reportArgumentType]
    with pytest.raises(SurgeryError, match="Net cannot be copied to be counted: TypeError"):
        report(model)


# Sizes


def test_input_size_comes_from_timm():
    assert guess_input_size(load_model("timm/efficientnet_b3")) == (3, 288, 288)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Conv1d(2, 4, 3), (2, 224)),
        (nn.Conv2d(1, 4, 3), (1, 224, 224)),
        (nn.Conv3d(1, 4, 3), (1, 16, 224, 224)),
        (nn.Linear(2, 2), (3, 224, 224)),
    ],
)
def test_input_size_is_guessed(model, size):
    assert guess_input_size(model) == size


@pytest.mark.parametrize("size", [(), (3,), (3, 0, 8), (3, -1, 8), (3, 8.0, 8), "3x8x8"])
def test_input_size_that_is_no_shape(size):
    with pytest.raises(SurgeryError, match="is no shape; give channels and sides"):
        report(Net(), input_size=size)


def test_input_size_is_used():
    rows = [report(Net(), "se", input_size=(3, n, n)).rows[0] for n in (8, 16)]
    # 3x3 convolutions of 3 and twice 16 channels to 16
    assert [row.macs for row in rows] == [9 * (3 + 16 + 16) * 16 * n * n for n in (8, 16)]


# Rows


def test_a_forward_that_fails_costs_the_macs_only():
    rows = report(Net(), input_size=(5, 8, 8)).rows
    assert [row.macs for row in rows] == [None] * 3
    assert None not in [row.params for row in rows]
    errors = [row.error or "" for row in rows]
    assert all("no MACs" in error and "5x8x8" in error for error in errors)
    assert not any("\n" in error for error in errors)


def test_a_host_without_sites():
    host, se = report(nn.Sequential(nn.Conv2d(3, 8, 3)), "se", input_size=(3, 8, 8)).rows
    assert host.error is None
    assert se.sites == 0
    assert (se.params, se.macs) == (host.params, host.macs)
    assert (se.error or "").startswith("nothing inserted: ")


def test_where_matches_nothing():
    with pytest.raises(SurgeryError, match="no_such_block"):
        report(Net(), "se", where="no_such_block", input_size=(3, 8, 8))


def test_where_is_passed_on():
    rows = report(load_model("torchvision/resnet18"), "se", where="layer4.*").rows
    assert rows[1].sites == 2


def test_a_surgery_that_fails_leaves_the_other_rows(monkeypatch):
    def apply(model, attention, **asked):
        if attention == "se":
            raise RuntimeError("out of\nluck")
        return original(model, attention, **asked)

    original = report_module.apply
    monkeypatch.setattr(report_module, "apply", apply)
    host, se, cbam = report(Net(), input_size=(3, 8, 8)).rows
    assert se.error == "RuntimeError: out of luck"
    assert se.params is se.macs is None
    assert host.error is cbam.error is None


@pytest.mark.parametrize(
    ("attention", "options"), [("cbma", {}), ("se", {"reductoin": 4}), (3, {}), ("se", {"init": 0})]
)
def test_what_cannot_be_planned_raises(attention, options):
    with pytest.raises(SurgeryError):
        report(Net(), [attention], input_size=(3, 8, 8), **options)


def nothing(channels):
    return nn.Identity()


@pytest.mark.parametrize(
    ("attention", "labels"),
    [
        ("se", ["se"]),
        (("se", "cbam"), ["se", "cbam"]),
        (nothing, ["nothing"]),
        ({"block*": "se", "*": nothing}, ["block*: se, *: nothing"]),
        ([], []),
    ],
)
def test_labels(attention, labels):
    rows = report(Net(), attention, input_size=(3, 8, 8)).rows
    assert [row.attention for row in rows] == [None, *labels]
    assert [row.sites for row in rows] == [0, *[1] * len(labels)]


def test_names():
    assert report(Net(), "se", input_size=(3, 8, 8)).rows[0].model == "Net"
    assert report(Net(), "se", input_size=(3, 8, 8), name="mine").rows[1].model == "mine"


# What is handed over


def test_to_dict_is_json():
    result = report(Net(), input_size=(3, 8, 8))
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert tuple(Row(**row) for row in read["rows"]) == result.rows
    assert read["input_sizes"] == {"Net": [3, 8, 8]}


def test_what_is_not_measured_is_none():
    row = report(Net(), input_size=(3, 8, 8)).rows[1]
    assert row.elementwise_ops is row.bytes_moved is row.saved_bytes is None
    assert row.latency_ms is row.latency_ratio is None


def test_frozen():
    row = Row("net", None, 0, 1, 1)
    with pytest.raises(FrozenInstanceError):
        row.params = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_table():
    rows = (
        Row("net", None, 0, 1_000_000, 2_000_000_000),
        Row("net", "se", 16, 1_100_000, 2_002_000_000),
        Row("net", "cbam", 16, 1_100_000, None, error="no MACs"),
    )
    lines = str(Report(rows, {"net": (3, 8, 8)})).splitlines()
    head = " ".join(lines[0].split())
    assert head == "model attention sites params (M) added added % MACs (G) added %"
    assert lines[2].split() == ["net", "-", "-", "1.000", "2.0000"]
    assert lines[3].split() == ["net", "se", "16", "1.100", "+100,000", "+10.00", "2.0020", "+0.10"]
    assert lines[4].split() == ["net", "cbam", "16", "1.100", "+100,000", "+10.00", "-"]
    assert "one input of 3x8x8" in lines[6]
    assert lines[7] == "net + cbam: no MACs"


def test_merge_compares_with_the_own_host():
    first, second = (
        Report((Row(name, None, 0, n, n), Row(name, "se", 1, n + 1, n)), {name: size})
        for name, n, size in (("a", 10, (3, 8, 8)), ("b", 100, (1, 9)))
    )
    merged = Report.merge([first, second])
    assert merged.rows == first.rows + second.rows
    table = str(merged)
    assert "+10.00" in table
    assert "+1.00" in table
    assert "a: one input of 3x8x8" in table
    assert "b: one input of 1x9" in table
