"""The papers' tables by one command each: golden files, formulas and the printed digits."""

import json
import os
from pathlib import Path

import pytest

from attn_surgery import cli

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

COMMANDS = {
    "papers": [
        *(f"torchvision/resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *("torchvision/resnext50_32x4d", "timm/resnext101_32x4d"),
    ],
    "papers_v1": [
        *(f"benchmarks.papers:resnet{depth}_v1" for depth in (18, 34, 50, 101)),
        *(f"benchmarks.papers:resnext{depth}_v1" for depth in (50, 101)),
    ],
}

# Design, section 4: host, SE, CBAM, to the last digit
PARAMETERS = {
    "torchvision/resnet18": (11_689_512, 11_778_592, 11_779_392),
    "torchvision/resnet50": (25_557_032, 28_088_024, 28_089_624),
    "torchvision/resnext50_32x4d": (25_028_904, 27_559_896, 27_561_496),
}

# CBAM paper, Table 4: parameters in millions and multiply-adds in billions of host, SE, CBAM
TABLE_4 = {
    "benchmarks.papers:resnet18_v1": (("11.69", "11.78", "11.78"), ("1.814", "1.814", "1.815")),
    "benchmarks.papers:resnet34_v1": (("21.80", "21.96", "21.96"), ("3.664", "3.664", "3.665")),
    "benchmarks.papers:resnet50_v1": (("25.56", "28.09", "28.09"), ("3.858", "3.860", "3.864")),
    "benchmarks.papers:resnet101_v1": (("44.55", "49.33", "49.33"), ("7.570", "7.575", "7.581")),
    "benchmarks.papers:resnext50_v1": (("25.03", "27.56", "27.56"), ("3.768", "3.771", "3.774")),
    "benchmarks.papers:resnext101_v1": (("44.18", "48.96", "48.96"), ("7.508", "7.512", "7.519")),
}

# Blocks of the four stages, bottleneck or basic, groups and width of a group's 3x3 at 64 planes
SHAPES = {
    "resnet18": ((2, 2, 2, 2), False, 1, 64),
    "resnet34": ((3, 4, 6, 3), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnet101": ((3, 4, 23, 3), True, 1, 64),
    "resnet152": ((3, 8, 36, 3), True, 1, 64),
    "resnext50": ((3, 4, 6, 3), True, 32, 4),
    "resnext101": ((3, 4, 23, 3), True, 32, 4),
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Run each command once and read what it wrote."""
    folder, here = tmp_path_factory.mktemp("papers"), Path.cwd()
    try:
        os.chdir(ROOT)  # where the benchmarks are imported from
        for table, models in COMMANDS.items():
            path = str(folder / f"{table}.json")
            words = ["report", *models, "--no-latency", "--format", "json", "--output", path]
            assert cli.main(words) == 0
    finally:
        os.chdir(here)
    return {table: json.loads((folder / f"{table}.json").read_text()) for table in COMMANDS}


def costs(result, field):
    """Model to the field's values for the host, SE and CBAM."""
    names = dict.fromkeys(row["model"] for row in result["rows"])
    return {n: tuple(r[field] for r in result["rows"] if r["model"] == n) for n in names}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("table", COMMANDS)
@pytest.mark.parametrize("field", ["attention", "sites", "params", "macs"])
def test_golden(counted, table, field):
    golden = json.loads((GOLDEN / f"{table}.json").read_text())
    assert costs(counted[table], field) == costs(golden, field)


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_of_the_design(counted, model):
    assert costs(counted["papers"], "params")[model] == PARAMETERS[model]


@pytest.mark.parametrize("model", TABLE_4)
def test_table_4_of_the_cbam_paper(counted, model):
    params, macs = TABLE_4[model]
    seen = costs(counted["papers_v1"], "params")[model], costs(counted["papers_v1"], "macs")[model]
    assert tuple(f"{n / 1e6:.2f}" for n in seen[0]) == params
    assert tuple(f"{n / 1e9:.3f}" for n in seen[1]) == macs


def test_resnet50_with_the_stride_on_the_3x3(counted):
    assert f"{costs(counted['papers'], 'macs')['torchvision/resnet50'][0] / 1e9:.4f}" == "4.0892"


# Worked out by hand


def blocks_of(name):
    """(channels in, width of the 3x3, channels out, stride, groups) of every block."""
    depths, bottleneck, groups, base = SHAPES[name]
    channels, found = 64, []
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        width = planes * base // 64 * groups if bottleneck else planes
        for index in range(depth):
            out = 4 * planes if bottleneck else planes
            found.append((channels, width, out, 2 if stage and not index else 1, groups))
            channels = out
    return found


def host_params(name):
    total, out = 3 * 64 * 49 + 2 * 64, 0  # the stem's convolution and norm
    for before, width, out, stride, groups in blocks_of(name):
        if SHAPES[name][1]:
            total += (
                before * width + width * width * 9 // groups + width * out + 4 * width + 2 * out
            )
        else:
            total += before * width * 9 + width * width * 9 + 4 * width
        if stride == 2 or before != out:
            total += before * out + 2 * out
    return total + out * 1000 + 1000


def se_params(name):
    # Two layers of C * C / 16, with C / 16 and C biases
    return sum(2 * out * (out // 16) + out // 16 + out for *_, out, _, _ in blocks_of(name))


def cbam_params(name):
    # One 7x7 convolution of two maps to one, and its norm's weight and bias
    return se_params(name) + (2 * 49 + 2) * len(blocks_of(name))


def host_macs(name, *, strided_first):
    side, out = 56, 0
    total = 3 * 64 * 49 * 112**2
    for before, width, out, stride, groups in blocks_of(name):
        after = side // stride
        if SHAPES[name][1]:
            first = after if strided_first else side
            total += before * width * first**2 + width * width * 9 // groups * after**2
            total += width * out * after**2
        else:
            total += (before + width) * width * 9 * after**2
        if stride == 2 or before != out:
            total += before * out * after**2
        side = after
    return total + out * 1000


def sides_of(name):
    side, found = 56, []
    for *_, out, stride, _ in blocks_of(name):
        side //= stride
        found.append((out, side))
    return found


def se_macs(name):
    return sum(2 * out * (out // 16) for out, _ in sides_of(name))


def cbam_macs(name):
    # The MLP runs for both pools, the 7x7 convolution once for every position.
    return 2 * se_macs(name) + sum(2 * 49 * side**2 for _, side in sides_of(name))


@pytest.mark.parametrize(("table", "strided_first"), [("papers", False), ("papers_v1", True)])
def test_formulas(counted, table, strided_first):
    params, macs = costs(counted[table], "params"), costs(counted[table], "macs")
    for model in COMMANDS[table]:
        name = model.rpartition("/")[2].rpartition(":")[2].partition("_")[0]
        base = host_params(name)
        assert params[model] == (base, base + se_params(name), base + cbam_params(name))
        base = host_macs(name, strided_first=strided_first)
        assert macs[model] == (base, base + se_macs(name), base + cbam_macs(name))
