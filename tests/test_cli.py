"""The command line: what it prints, and that every failure is one line and an exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attn_surgery import cli
from attn_surgery.attention import available

ROOT = Path(__file__).parent.parent


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_list(capsys):
    status, out, err = run(capsys, "list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == available()
    assert "Squeeze-and-excitation" in next(line for line in lines if line.startswith("se "))


def test_list_json(capsys):
    status, out, _ = run(capsys, "list", "--json")
    assert status == 0
    assert list(json.loads(out)) == available()


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


def test_report(capsys):
    status, out, err = run(capsys, "report", "torchvision/resnet50", "torchvision/resnet18")
    assert (status, err) == (0, "")
    assert "4.0892" in out
    assert "1.8141" in out
    assert "MACs (G)" in out
    assert "3x224x224" in out


def test_report_json(capsys):
    words = ["torchvision/resnet18", "--attention", "se", "--input", "3x64x64", "--json"]
    status, out, _ = run(capsys, "report", *words)
    assert status == 0
    result = json.loads(out)
    assert [row["attention"] for row in result["rows"]] == [None, "se"]
    assert result["rows"][1]["params"] == 11_778_592
    assert result["input_sizes"] == {"torchvision/resnet18": [3, 64, 64]}


def test_options_reach_the_attention(capsys):
    words = ["torchvision/resnet50", "--attention", "se", "--set", "bias=False", "--json"]
    _, out, _ = run(capsys, "report", *words)
    assert json.loads(out)["rows"][1]["params"] == 28_071_976


def test_a_row_that_fails_is_status_1(capsys):
    status, out, err = run(capsys, "report", "torchvision/raft_small", "torchvision/resnet18")
    assert (status, err) == (1, "")
    assert "missing 1 required positional argument: 'image2'" in out
    assert "1.8141" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "resnet5O"], "unknown model 'resnet5O'; did you mean 'resnet50'?"),
        (["report", "torchvision/resnet18", "no_package:net"], "cannot import 'no_package:net'"),
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
    assert err.startswith("attn-surgery: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["cut"], "invalid choice: 'cut'"),
        (["plan"], "MODEL"),
        (["report", "resnet18", "--input", "3xtwo"], "'3xtwo' is no shape such as 3x224x224"),
        (["plan", "resnet18", "--set", "8"], "'8' is no option such as reduction=8"),
        (["plan", "resnet18", "--set", "a b=8"], "'a b=8' is no option such as reduction=8"),
    ],
)
def test_usage_errors(capsys, words, message):
    with pytest.raises(SystemExit) as raised:
        cli.main(words)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    def interrupted(name, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", interrupted)
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
    assert cli.parse_setting(text) == setting


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
    assert failed.stderr.startswith("attn-surgery: error: cannot import 'mine:ne'")
    assert failed.stderr.count("\n") == 1
