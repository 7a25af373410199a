"""``attn-surgery finetune`` and ``evaluate``: what is printed, and that a failure is one line."""

from __future__ import annotations

import json

import pytest

from attn_surgery import cli
from attn_surgery.finetune.recipe.reading import shipped
from tests.finetuning import TINY, write_recipe


@pytest.fixture
def words(tmp_path):
    """Return the words that run a recipe of seconds."""
    path = write_recipe(tmp_path / "tiny.toml", TINY)
    return ["finetune", path, "--output", str(tmp_path / "out")]


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_finetune_then_evaluate(capsys, words, tmp_path):
    status, out, err = run(capsys, *words, "--seeds", "2", "--set", "stages.0.epochs=2")
    assert status == 0
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert rows[2:5] == ["host before", "control after", "cbam after"]
    assert "cbam is not judged: 2 of the 3 seeds that it takes at least" in out
    assert "cbam, seed 1, stages.0 epoch 2: accuracy" in err
    assert json.loads((tmp_path / "out/recipe.json").read_text())["seeds"] == 2

    status, out, _ = run(capsys, "evaluate", str(tmp_path / "out"))
    assert status == 0
    assert len(out.splitlines()) == 6
    assert all(line.endswith("(as recorded)") for line in out.splitlines())

    metrics = tmp_path / "out/seed1/cbam/metrics.json"
    told = json.loads(metrics.read_text())
    told["score"]["accuracy"] += 0.01
    metrics.write_text(json.dumps(told))
    status, out, err = run(capsys, "evaluate", str(tmp_path / "out"), "--json")
    assert status == 2
    found = json.loads(out)
    assert [each["recorded"] == each["measured"] for each in found] == [True] * 5 + [False]
    assert "1 of 6 results differ from what was recorded, seed1/cbam first" in err


def test_without_control(capsys, words):
    status, out, _ = run(capsys, *words, "--no-control", "--json")
    assert status == 0
    told = json.loads(out)
    assert [line["variant"] for line in told["lines"]] == ["host", "cbam"]
    assert told["verdicts"] == []


def test_check_runs_nothing(capsys, words, tmp_path):
    status, out, _ = run(capsys, *words, "--check")
    assert (status, "nothing is wrong" in out) == (0, True)
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line(capsys, words, tmp_path):
    for wrong, told in [
        ([*words, "--set", "stages.0.lrr=1"], "did you mean 'lr'"),
        ([*words, "--seeds", "0"], "seeds"),
        (["finetune", "digit"], "there is no recipe 'digit'; did you mean 'digits'"),
        (["evaluate", str(tmp_path)], "is no output of attn-surgery finetune"),
    ]:
        status, out, err = run(capsys, *wrong)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert told in err


def test_help_names_the_recipes_that_ship(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        cli.main(["finetune", "--help"])
    assert ", ".join(shipped()) in capsys.readouterr().out
