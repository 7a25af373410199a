"""The command line: what it prints, and that every failure is one line and an exit status."""

import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_surgery
from attn_surgery import cli
from attn_surgery.attention import available
from attn_surgery.cli import parser
from attn_surgery.cli import plan as plan_command
from attn_surgery.cli import report as report_command
from attn_surgery.cli.parser import parse_setting
from attn_surgery.host.load import load_model
from attn_surgery.reporting.formats import FORMATS
from attn_surgery.reporting.measuring.conditions import accelerator, device_name
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row
from attn_surgery.reporting.tables import GROUPS

ROOT = Path(__file__).parents[2]


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_list(capsys):
    status, out, err = run(capsys, "list")
    assert (status, err) == (0, "")
    head, _, *lines = out.splitlines()
    assert head.split()[:2] == ["name", "paper"]
    assert [line.split()[0] for line in lines] == available()
    row = next(line for line in lines if line.startswith("se "))
    assert all(part in row for part in ("arXiv:1709.01507", "8,464", "8,192", "1, 2, 3"))


def test_list_json(capsys):
    status, out, _ = run(capsys, "list", "--json")
    assert status == 0
    listed = {each.pop("name"): each for each in json.loads(out)}
    assert list(listed) == available()
    assert listed["srm"]["params"] == 1024
    assert (listed["eca"]["dims"], listed["eca"]["fault"]) == ([2], "")


def test_plan(capsys):
    status, out, err = run(capsys, "plan", "torchvision/resnet18")
    assert (status, err) == (0, "")
    assert "layer1.0" in out
    assert "bn2" in out


def test_plan_json(capsys):
    words = ["torchvision/resnet18", "--where", "layer4.*", "layer3.0", "--json"]
    status, out, _ = run(capsys, "plan", *words, "--set", "reduction=8")
    assert status == 0
    blocks = [site["block"] for site in json.loads(out)["sites"]]
    assert blocks == ["layer3.0", "layer4.0", "layer4.1"]


def report(capsys, *words: str) -> tuple[int, str, str]:
    return run(capsys, "report", *words, "--no-latency")


def test_report(capsys):
    status, out, err = report(capsys, "torchvision/resnet50", "torchvision/resnet18")
    assert (status, err) == (0, "")
    assert "4.0892" in out
    assert "1.8141" in out
    assert "MACs (G)" in out
    assert "3x224x224" in out
    assert "latency" not in out


SMALL = ["torchvision/resnet18", "--attention", "se", "--input", "3x64x64"]


def test_report_json(capsys):
    status, out, _ = report(capsys, *SMALL, "--json")
    assert status == 0
    result = json.loads(out)
    assert [row["attention"] for row in result["rows"]] == [None, "se"]
    assert result["rows"][1]["params"] == 11_778_592
    assert result["input_sizes"] == {"torchvision/resnet18": [3, 64, 64]}
    assert report(capsys, *SMALL, "--format", "json")[1] == out


def test_options_reach_the_attention(capsys):
    words = ["torchvision/resnet50", "--attention", "se", "--set", "bias=False", "--json"]
    _, out, _ = report(capsys, *words)
    assert json.loads(out)["rows"][1]["params"] == 28_071_976


def test_measured(capsys):
    words = [*SMALL, "--device", "cpu", "--batch-size", "2", "--threads", "1", "--seconds", "0"]
    status, out, err = run(capsys, "report", *words, "--train", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert all(row["latency_ms"] > 0 and row["train_latency_ms"] > 0 for row in result["rows"])
    assert [len(each["ms"]) for each in result["samples"]] == [10] * 4
    told = result["provenance"]
    assert (told["threads"], told["batch_size"], told["dtype"]) == (1, 2, "as loaded")
    assert platform.node() not in {told["device"], ""}


@pytest.mark.accelerator
def test_measured_on_the_accelerator_by_default(capsys):
    there = accelerator()
    assert there is not None
    _, out, _ = run(capsys, "report", *SMALL, "--seconds", "0", "--json")
    result = json.loads(out)
    assert result["provenance"]["device"] == device_name(there)
    assert all(row["peak_bytes"] for row in result["rows"])


def test_sites_are_timed_warm_and_cold(capsys):
    options = ["--per-site", "--threads", "1", "--seconds", "0", "--device", "cpu"]
    _, out, _ = run(capsys, "report", *SMALL, *options, "--json")
    sites = json.loads(out)["per_site"]
    assert all(each["warm_ms"] > 0 and each["cold_ms"] > 0 for each in sites)
    _, out, _ = run(capsys, "report", *SMALL, *options)
    assert "warm (ms)" in out
    assert "wall clock latency (median ms)" in out


@pytest.mark.parametrize(
    ("words", "asked"),
    [([], False), (["--compile"], True), (["--compile", "attention"], "attention")],
)
def test_what_is_compiled(monkeypatch, capsys, words, asked):
    seen = []

    def noted(model, attention, **keywords):
        seen.append(keywords["compile"])
        return Report((Row("net", None, 0, 1, 1),))

    monkeypatch.setattr(report_command, "report", noted)
    run(capsys, "report", *SMALL, *words)
    assert seen == [asked]


def test_graphs_are_cudas(capsys):
    status, out, err = run(capsys, "report", *SMALL, "--graph", "--device", "cpu")
    assert (status, out) == (2, "")
    assert "graph: captured on CUDA devices alone, not on cpu" in err


def test_one_that_fails_leaves_the_others(capsys):
    status, out, err = report(capsys, "no_package:net", "torchvision/resnet18")
    assert (status, err) == (1, "")
    assert "no_package:net: cannot import 'no_package:net'" in out
    assert "1.8141" in out


def test_an_attention_that_goes_nowhere_is_status_1(capsys):
    status, out, err = report(capsys, "torchvision/vgg11")
    assert (status, err) == (1, "")
    assert "torchvision/vgg11 + se: nothing inserted" in out


@pytest.mark.slow
def test_raft_and_detection(capsys):
    models = ["torchvision/raft_small", "torchvision/ssdlite320_mobilenet_v3_large"]
    status, out, err = report(capsys, *models, "--attention", "se")
    assert (status, err) == (0, "")
    assert "one input of 3x224x224,3x224x224" in out
    assert "every box passes" in out


def test_an_input_of_ones_own(capsys, tmp_path, monkeypatch):
    (tmp_path / "images.py").write_text(
        "import torch\n\ndef two():\n    return [torch.zeros(3, 32, 64), torch.zeros(3, 64, 32)]\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["torchvision/ssdlite320_mobilenet_v3_large", "--attention", "se", "--json"]
    status, out, _ = report(capsys, *words, "--input", "images:two")
    assert status == 0
    result = json.loads(out)
    assert list(result["input_sizes"].values()) == ["two"]
    _, once, _ = report(capsys, *words)
    macs, of_one = (json.loads(text)["rows"][0]["macs"] for text in (out, once))
    assert macs == 2 * of_one


# Formats


def test_csv_is_read_back(capsys):
    words = [*SMALL[:2], "se", "cbam", *SMALL[3:], "--format", "csv"]
    status, out, _ = report(capsys, *words)
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["attention"] for row in rows] == ["", "se", "cbam"]
    assert [int(row["params"]) for row in rows] == [11_689_512, 11_778_592, 11_779_392]
    assert list(rows[0])[:4] == ["model", "attention", "sites", "params"]
    assert {row["latency_ms"] for row in rows} == {""}


def cells(line: str, separator: str) -> list[str]:
    bare = line.strip().removeprefix("|").removesuffix("|").removesuffix("\\\\")
    return [cell.strip() for cell in bare.split(separator)]


def test_markdown_is_read_back(capsys):
    _, out, _ = report(capsys, *SMALL, "--format", "markdown", "--per-site")
    blocks = [block.splitlines() for block in out.split("\n\n")]
    head, rule, host, se = blocks[0]
    assert set(rule) <= set("|-:")
    assert len({len(cells(line, "|")) for line in (head, rule, host, se)}) == 1
    assert cells(se, "|")[:5] == ["torchvision/resnet18", "se", "8", "11.779", "+89,080"]
    assert len(blocks[1]) == 2 + 8
    assert all(line.startswith("- ") for line in blocks[2])


def test_latex_is_read_back(capsys):
    _, out, _ = report(capsys, *SMALL, "--format", "latex")
    lines = out.splitlines()
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert cells(body[1], "&")[:5] == ["torchvision/resnet18", "se", "8", "11.779", "+89,080"]
    columns = len(cells(body[0], "&"))
    assert lines[0] == "\\begin{tabular}{ll" + "r" * (columns - 2) + "}"
    assert lines[-1].startswith("% ")


def test_table_has_units(capsys):
    _, out, _ = report(capsys, *SMALL, "--per-site", "--wide")
    head = out.splitlines()[0]
    for unit in ("params (M)", "MACs (G)", "elementwise (M op)", "moved (MB)", "saved (MB)"):
        assert unit in head
    assert "layer4.1" in out
    assert "2 FLOPs" in out


def test_output_goes_to_a_file(capsys, tmp_path):
    path = tmp_path / "costs.csv"
    status, out, _ = report(capsys, *SMALL, "--format", "csv", "--output", str(path))
    assert (status, out) == (0, "")
    assert path.read_text().startswith("model,attention,")


def test_plot(capsys, tmp_path):
    path = tmp_path / "costs.png"
    words = [*SMALL, "--device", "cpu", "--threads", "1", "--seconds", "0", "--plot", str(path)]
    assert run(capsys, "report", *words)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = run(capsys, "report", *SMALL, "--plot", "costs.png")
    assert status == 2
    assert "pip install 'attn-surgery[plot]'" in err


# Ctrl-C


def test_interrupted_while_measuring(capsys, monkeypatch):
    latency = importlib.import_module("attn_surgery.reporting.measuring.latency")
    original = latency._order

    def order(models, round_):
        if round_ == 3:
            raise KeyboardInterrupt
        return original(models, round_)

    monkeypatch.setattr(latency, "_order", order)
    words = [SMALL[0], "torchvision/resnet34", *SMALL[1:], "--device", "cpu", "--threads", "1"]
    status, out, err = run(capsys, "report", *words)
    assert (status, err) == (130, "")
    assert "latency (median ms)" in out
    assert "interrupted: measured so far" in out
    assert "resnet34" not in out


def test_interrupted_in_the_second_model(capsys, monkeypatch):
    def load(name, **options):
        if name == "second":
            raise KeyboardInterrupt
        return load_model(name, **options)

    monkeypatch.setattr(report_command, "load_model", load)
    status, out, err = report(capsys, "torchvision/resnet18", "second")
    assert (status, err) == (130, "")
    assert "1.8141" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "resnet5O"], "unknown model 'resnet5O'; did you mean 'resnet50'?"),
        (["report", "no_package:net"], "cannot import 'no_package:net'"),
        (["report", "resnet5O", "no_package:net"], "resnet5O: unknown model"),
        (["report", "resnet18", "--input", "5x8x8"], "5x8x8"),
        (["report", "resnet18", "--input", "3xtwo"], "'3xtwo' is no shape such as 3x224x224"),
        (["report", "resnet18", "--input", "no_package:image"], "cannot import"),
        (["report", "resnet18", "--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["report", "resnet18", "--device", "abacus"], "unknown device 'abacus'"),
        (["report", "resnet18", "--device", "cpu", "--batch-size", "9" * 12], "out of memory at"),
        (["report", "resnet18", "--batch-size", "0"], "batch_size=0"),
        (["report", "resnet18", "--dtype", "int8"], "dtype='int8'"),
        (["report", "resnet18", "--init", "chance"], "chance"),
        (["report", "resnet18", "--set", "seconds=8"], "'seconds' is no option of an attention"),
        (["report", "resnet18", "--output", "no/such/folder.csv"], "no folder no/such"),
        (["report", "resnet18", "--plot", "costs.xyz"], "cannot draw to costs.xyz"),
        (["report", "resnet18", "--plot", "costs.png", "--no-latency"], "leave --no-latency out"),
        (["plan", "resnet18", "--attention", "cbma"], "did you mean 'cbam'?"),
        (["report", "resnet18", "--attention", "cbma"], "did you mean 'cbam'?"),
        (["plan", "resnet18", "--set", "reductoin=8"], "did you mean 'reduction'?"),
        (["plan", "resnet18", "--set", "name=8"], "'name' is no option of an attention"),
        (["plan", "resnet18", "--position", "nowhere"], "nowhere"),
        (["plan", "resnet18", "--existing", "burn"], "burn"),
        (["report", "resnet18", "--input", "3"], "is no shape"),
        (["report", "resnet18", "--checkpoint", "no/such.pt"], "cannot read checkpoint"),
    ],
)
def test_errors_are_one_line(capsys, words, message):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert re.match(r"attn-surgery: error(\[[a-z-]+\])?: ", err)
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["cut"], "invalid choice: 'cut'"),
        (["plan"], "MODEL"),
        (
            ["plan", "resnet18", "--init", "paper"],
            "plan: error: unrecognized arguments: --init",
        ),
        (["list", "se"], "list: error: unrecognized arguments: se"),
        (["report", "resnet18", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["plan", "resnet18", "--set", "8"], "'8' is no option such as reduction=8"),
        (["plan", "resnet18", "--set", "a b=8"], "'a b=8' is no option such as reduction=8"),
    ],
)
def test_usage_errors(capsys, words, message):
    with pytest.raises(SystemExit) as raised:
        cli.main(words)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["plan", "--help"],
        ["finetune", "--help"],
        ["cut"],
        ["plan", "--cut"],
    ],
)
def test_help_and_mistakes_wait_for_no_import(words):
    text = f"""
import sys
from attn_surgery.cli import main
try:
    main({words!r})
finally:
    late = {{"torch", "torchvision", "timm", "numpy"}} & sys.modules.keys()
    assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert "AssertionError" not in done.stderr
    assert done.returncode == (0 if {"--help", "--version"} & {*words} else 2)


def test_the_formats_of_the_words_are_those_of_the_report():
    assert parser.FORMATS == FORMATS


def test_the_help_names_every_column():
    assert parser.COLUMNS == GROUPS


def test_the_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"attn-surgery {attn_surgery.__version__}\n"
    assert attn_surgery.__version__ == importlib.metadata.version("attn-surgery")


def test_interrupt(monkeypatch, capsys):
    def interrupted(name, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_command, "load_model", interrupted)
    assert run(capsys, "plan", "resnet18") == (130, "", "")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("reduction=8", ("reduction", 8)),
        ("bias=False", ("bias", False)),
        ("pools=('avg', 'max')", ("pools", ("avg", "max"))),
        ("order=spatial", ("order", "spatial")),
        ("order='spatial'", ("order", "spatial")),
        ("text=a=b", ("text", "a=b")),
        ("empty=", ("empty", "")),
    ],
)
def test_settings(text, setting):
    assert parse_setting(text) == setting


def test_as_a_program(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torchvision\n\ndef net():\n    return torchvision.models.resnet18(num_classes=3)\n"
    )

    def program(*words):
        return subprocess.run(
            [sys.executable, "-m", "attn_surgery", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = program("plan", "mine:net", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["sites"]) == 8
    failed = program("plan", "mine:ne")
    assert (failed.returncode, failed.stdout) == (2, "")
    told = "attn-surgery: error[unknown-model]: cannot import 'mine:ne'"
    assert failed.stderr.startswith(told)
    assert failed.stderr.count("\n") == 1


# Choosing sites, mixtures and plans


@pytest.mark.parametrize(
    ("words", "blocks"),
    [
        (["--stage", "2", "4"], ["layer2.0", "layer2.1", "layer4.0", "layer4.1"]),
        (["--last-of-stage"], ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        (["--every", "3"], ["layer2.0", "layer3.1"]),
        (["--min-channels", "256", "--where", "layer?.0"], ["layer3.0", "layer4.0"]),
        (["--last-of-stage", "--stage", "1"], ["layer1.1"]),
    ],
)
def test_choosing_sites(capsys, words, blocks):
    status, out, _ = run(capsys, "plan", "torchvision/resnet18", *words, "--json")
    assert status == 0
    assert [site["block"] for site in json.loads(out)["sites"]] == blocks


def test_a_stage_that_is_not_there(capsys):
    status, _, err = run(capsys, "plan", "torchvision/resnet18", "--stage", "5")
    assert status == 2
    assert "there is no stage 5; the stages begin at 1: layer1.0, 2: layer2.0" in err


def test_a_plan_is_saved_and_reported(capsys, tmp_path):
    path = str(tmp_path / "plan.json")
    mixture = "layer4.*=cbam,*=se"
    words = ["torchvision/resnet18", "--attention", mixture, "--last-of-stage", "--output", path]
    assert run(capsys, "plan", *words)[0] == 0
    words = ["torchvision/resnet18", "--attention", path, mixture, "--no-latency", "--json"]
    status, out, _ = run(capsys, "report", *words)
    assert status == 0
    host, planned, everywhere = json.loads(out)["rows"]
    assert (planned["attention"], planned["sites"]) == ("se, cbam", 4)
    assert (everywhere["attention"], everywhere["sites"]) == ("layer4.*: cbam, *: se", 8)
    assert host["params"] < planned["params"] < everywhere["params"]


def test_a_plan_that_cannot_be_read(capsys, tmp_path):
    status, _, err = run(capsys, "plan", "torchvision/resnet18", "--attention", "none.json")
    assert status == 2
    assert "cannot read a plan from none.json" in err


def test_replacing(capsys):
    words = ["torchvision/mobilenet_v3_small", "--existing", "replace", "--attention", "coord"]
    status, out, _ = run(capsys, "plan", *words, "--json")
    assert status == 0
    assert sum(site["method"] == "swap" for site in json.loads(out)["sites"]) == 9
