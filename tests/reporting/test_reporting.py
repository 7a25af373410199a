"""The costs of attention: golden counts, an untouched host, and rows that fail on their own."""

import importlib
import json
import random
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.host.inputs import guess_input_size
from attn_surgery.host.load import load_model
from attn_surgery.reporting.report import report
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row
from tests.pretended import Accelerator

# The package's `report` may be the function; this is the module.
report_module = importlib.import_module("attn_surgery.reporting.report")
variants_module = importlib.import_module("attn_surgery.reporting.variants")


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


def counted(*args, **kwargs):
    return report(*args, latency=False, **kwargs)


def test_golden_params_without_biases():
    rows = counted(load_model("torchvision/resnet50"), "se", bias=False).rows
    assert rows[1].params == 28_071_976


def test_golden_macs():
    host, se, cbam = counted(load_model("torchvision/resnet50")).rows
    assert host.macs == 4_089_184_256
    # Two layers of C * C/16 a block: the parameters of SE without biases.
    mlp = 28_071_976 - 25_557_032
    assert se.macs == host.macs + mlp
    # The MLP runs for both pools, the 7x7 convolution of two maps once for every position.
    positions = 3 * 56**2 + 4 * 28**2 + 6 * 14**2 + 3 * 7**2
    assert cbam.macs == host.macs + 2 * mlp + 2 * 7 * 7 * positions


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

    report(host, input_size=(3, 8, 8), train=True, per_site=True, threads=1, seconds=0)

    assert {name: module.training for name, module in host.named_modules()} == modes
    assert {name: type(module) for name, module in host.named_modules()} == classes
    assert dict(host.named_modules()) == modules
    after = host.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.requires_grad and p.grad is None for p in host.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_a_model_that_cannot_be_copied():
    model = Net()
    model.stream = (line for line in ())  # pyright: ignore[reportArgumentType]
    with pytest.raises(SurgeryError, match="Net cannot be copied to be counted: TypeError"):
        counted(model)


def test_random_numbers_are_left_alone():
    host = nn.Sequential(Net(), nn.Dropout())
    states = torch.get_rng_state(), random.getstate()
    report(host, "se", input_size=(3, 8, 8), latency=False, train=True, threads=1, seconds=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_random_numbers_of_a_device_that_nobody_used_are_left_alone(monkeypatch):
    there = Accelerator(monkeypatch, is_initialized=False)
    before = there.states()

    def measured(_: object, result: Report, *__: object) -> Report:
        there.draw()
        return result

    monkeypatch.setattr(report_module, "checked_device", lambda _: there.device)
    monkeypatch.setattr(report_module.Measured, "rows", measured)
    report(Net(), "se", input_size=(3, 8, 8), device="cuda")
    assert there.states() == before


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


@pytest.mark.parametrize("size", [(), (3,), 8, (3, 0, 8), (3, -1, 8), (3, 8.0, 8), "3x8x8"])
def test_input_size_that_is_no_shape(size):
    with pytest.raises(SurgeryError, match="is no shape; give channels and sides"):
        counted(Net(), input_size=size)


def test_input_size_is_used():
    rows = [counted(Net(), "se", input_size=(3, n, n)).rows[0] for n in (8, 16)]
    # 3x3 convolutions of 3 and twice 16 channels to 16
    assert [row.macs for row in rows] == [9 * (3 + 16 + 16) * 16 * n * n for n in (8, 16)]


# Rows


def test_a_forward_that_fails_costs_the_counts_only():
    rows = counted(Net(), input_size=(5, 8, 8)).rows
    assert [row.macs for row in rows] == [None] * 3
    assert None not in [row.params for row in rows]
    errors = [row.error or "" for row in rows]
    assert all("not counted" in error and "5x8x8" in error for error in errors)
    assert not any("\n" in error for error in errors)


def test_a_host_without_sites():
    host, se = counted(nn.Sequential(nn.Conv2d(3, 8, 3)), "se", input_size=(3, 8, 8)).rows
    assert host.error is None
    assert se.sites == 0
    assert (se.params, se.macs) == (host.params, host.macs)
    assert (se.error or "").startswith("nothing inserted: ")


def test_where_matches_nothing():
    with pytest.raises(SurgeryError, match="no_such_block"):
        counted(Net(), "se", where="no_such_block", input_size=(3, 8, 8))


def test_where_is_passed_on():
    rows = counted(load_model("torchvision/resnet18"), "se", where="layer4.*").rows
    assert rows[1].sites == 2


def test_a_surgery_that_fails_leaves_the_other_rows(monkeypatch):
    def apply(model, attention, **asked):
        if attention == "se":
            raise RuntimeError("out of\nluck")
        return original(model, attention, **asked)

    original = variants_module.apply
    monkeypatch.setattr(variants_module, "apply", apply)
    host, se, cbam = counted(Net(), input_size=(3, 8, 8)).rows
    assert se.error == "RuntimeError: out of luck"
    assert se.params is se.macs is None
    assert host.error is cbam.error is None


@pytest.mark.parametrize(
    ("attention", "options"), [("cbma", {}), ("se", {"reductoin": 4}), (3, {}), ("se", {"init": 0})]
)
def test_what_cannot_be_planned_raises(attention, options):
    with pytest.raises(SurgeryError):
        counted(Net(), [attention], input_size=(3, 8, 8), **options)


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
    rows = counted(Net(), attention, input_size=(3, 8, 8)).rows
    assert [row.attention for row in rows] == [None, *labels]
    assert [row.sites for row in rows] == [0, *[1] * len(labels)]


def test_names():
    assert counted(Net(), "se", input_size=(3, 8, 8)).rows[0].model == "Net"
    assert counted(Net(), "se", input_size=(3, 8, 8), name="mine").rows[1].model == "mine"


# What is handed over


def test_to_dict_is_json():
    result = counted(Net(), input_size=(3, 8, 8))
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert tuple(Row(**row) for row in read["rows"]) == result.rows
    assert read["input_sizes"] == {"Net": [3, 8, 8]}


def test_what_is_not_measured_is_none():
    result = counted(Net(), input_size=(3, 8, 8))
    row = result.rows[1]
    assert row.latency_ms is row.latency_ratio is row.train_latency_ms is row.peak_bytes is None
    assert result.provenance == {}
    assert result.samples == ()
    assert None not in {row.elementwise_ops, row.bytes_moved, row.saved_bytes}


def test_frozen():
    row = Row("net", None, 0, 1, 1)
    with pytest.raises(FrozenInstanceError):
        row.params = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_table():
    rows = (
        Row("net", None, 0, 1_000_000, 2_000_000_000),
        Row("net", "se", 16, 1_100_000, 2_002_000_000),
        Row("net", "cbam", 16, 1_100_000, None, error="not counted"),
    )
    lines = str(Report(rows, {"net": [3, 8, 8]})).splitlines()
    head = " ".join(lines[0].split())
    assert head == "model attention sites params (M) added added % MACs (G) added %"
    assert lines[2].split() == ["net", "-", "-", "1.000", "2.0000"]
    assert lines[3].split() == ["net", "se", "16", "1.100", "+100,000", "+10.00", "2.0020", "+0.10"]
    assert lines[4].split() == ["net", "cbam", "16", "1.100", "+100,000", "+10.00", "-"]
    assert "one input of 3x8x8" in lines[6]
    assert lines[7] == "net + cbam: not counted"


def timed(ratio, low, high, attention: str | None = "se"):
    return Row(
        *("net", attention, 1, 10, 10),
        latency_ms=10 * ratio,
        latency_ratio=ratio,
        latency_q1_ms=9.0,
        latency_q3_ms=11.0,
        latency_ratio_low=low,
        latency_ratio_high=high,
        latency_added_ms=10 * (ratio - 1),
    )


def test_a_difference_within_noise_is_marked_and_not_printed():
    host = timed(1.0, 1.0, 1.0, attention=None)
    text = Report((host, timed(1.234, 1.1, 1.3), timed(1.012, 0.99, 1.03))).text(width=None)
    told, noise = [line for line in text.splitlines() if "9.00 to 11.00" in line][1:]
    assert "+2.34" in told
    assert "1.234 (1.100 to 1.300)" in told
    assert "~ (0.990 to 1.030)" in noise
    assert "1.012" not in noise
    assert "+0.12" not in noise
    assert "~: within noise" in text
    assert "~: within noise" not in str(Report((host, timed(1.234, 1.1, 1.3))))


def test_merge_compares_with_the_own_host():
    first, second = (
        Report((Row(name, None, 0, n, n), Row(name, "se", 1, n + 1, n)), {name: size})
        for name, n, size in (("a", 10, [3, 8, 8]), ("b", 100, [1, 9]))
    )
    merged = Report.merge([first, second])
    assert merged.rows == first.rows + second.rows
    table = str(merged)
    assert "+10.00" in table
    assert "+1.00" in table
    assert "a: one input of 3x8x8" in table
    assert "b: one input of 1x9" in table


# Sites


class Twice(nn.Module):
    """Two residual additions in one block, and a block inside of its branch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.inner = Block()
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.bn1(self.conv1(x).relu())
        return x + self.bn2(self.conv2(self.inner(x)).relu())


class Counting(Block):
    """Cannot be rewritten: the forward keeps a number that a trace would freeze."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


def attached():
    net = Net()
    net.block = Counting()
    return net


def sums(costs):
    return [
        sum(getattr(cost, name) for cost in costs)
        for name in ("params", "macs", "elementwise_ops", "bytes_moved")
    ]


def added(row, host):
    return [
        getattr(row, name) - getattr(host, name)
        for name in ("params", "macs", "elementwise_ops", "bytes_moved")
    ]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: load_model("torchvision/resnet18"), {}),
        (lambda: load_model("torchvision/resnet18"), {"where": "layer3.*"}),
        (lambda: load_model("torchvision/mobilenet_v3_small"), {"existing": "stack"}),
        (lambda: load_model("timm/seresnet18"), {"existing": "stack"}),
        (lambda: load_model("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"), {}),
        (Twice, {}),
        (attached, {}),
        (Block, {"input_size": (16, 8, 8)}),
    ],
)
def test_sites_add_up(make, options):
    result = counted(make(), per_site=True, **options)
    host, *variants = result.rows
    for row in variants:
        assert row.error is None
        costs = [cost for cost in result.per_site if cost.attention == row.attention]
        assert sums(costs) == added(row, host)
        told = [cost for cost in costs if cost.block is not None]
        assert sum(len(cost.after) for cost in told) == row.sites
        assert all(cost.params > 0 and cost.elementwise_ops > 0 for cost in told)


def test_sites_of_several_placements_and_blocks():
    result = counted(Twice(), "se", per_site=True, input_size=(3, 8, 8))
    assert {cost.block: cost.after for cost in result.per_site} == {
        "": ("bn1", "bn2"),
        "inner": ("bn2",),
    }
    # C = 16: one hidden channel, 2 * 16 weights, 17 biases
    assert [cost.params for cost in result.per_site] == [2 * 49, 49]
    assert "(the host)" in str(result)


def test_attach_is_attributed_to_the_block():
    planned = attn_surgery.plan(attached(), "se").sites
    assert [site.method for site in planned] == ["attach"]
    (cost,) = counted(attached(), "se", per_site=True, input_size=(3, 8, 8)).per_site
    assert (cost.block, cost.params) == ("block", 49)


def test_replaced_attention_is_taken_off():
    result = counted(load_model("timm/seresnet18"), "cbam", existing="replace", per_site=True)
    host, row = result.rows
    assert row.error is None
    assert sums(result.per_site) == added(row, host)


# Models of other kinds


def test_one_channel_volume_and_sequence():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 16, 3, padding=1)
            self.branch = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16))

        def forward(self, x):
            x = self.conv(x)
            return x + self.branch(x).relu()

    rows = counted(Volume(), input_size=(1, 8, 8, 8)).rows
    assert [row.error for row in rows] == [None] * 3
    assert rows[0].macs == 27 * 16 * 512 * (1 + 16)


def test_input_from_a_callable():
    result = counted(Net(), "se", input_size=lambda: {"x": torch.zeros(1, 3, 8, 8)})
    assert result.rows == counted(Net(), "se", input_size=(3, 8, 8)).rows
    assert "<lambda>" in str(result.input_sizes["Net"])


def test_a_callable_that_fails():
    with pytest.raises(SurgeryError, match="could not be made: ZeroDivisionError"):
        counted(Net(), "se", input_size=lambda: 1 / 0)
    with pytest.raises(SurgeryError, match="not a str"):
        counted(Net(), "se", input_size=lambda: "image")


def test_dtype_is_counted():
    single = counted(Net(), "se", input_size=(3, 8, 8)).rows[1]
    half = counted(Net(), "se", input_size=(3, 8, 8), dtype="bfloat16").rows[1]
    assert half.bytes_moved is not None
    assert single.bytes_moved == 2 * half.bytes_moved


def test_a_host_on_the_meta_device_is_counted_only():
    host = Net().to("meta")
    rows = report(host, "se", input_size=(3, 8, 8), device="cpu").rows
    assert [row.error for row in rows] == [None, None]
    assert rows[1].latency_ms is None
