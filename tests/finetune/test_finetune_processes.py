"""Several processes, and several machines, see together what one sees alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_surgery.finetune import read_recipe, remeasure, run_recipe
from tests.finetuning import DRIVER, TINY, environment, launched, weights, within, write_recipe

FROZEN: dict[str, Any] = {
    **TINY,
    "surgery": {"attention": ["se"]},
    "pretraining": [],
    "stages": [
        {"trains": ["attention"], "epochs": 1, "lr": 0.01, "norm_stats": "frozen"},
        {"epochs": 2, "lr": 0.01, "norm_stats": "frozen", "accumulate": 2},
    ],
    "control": False,
    "data": within("data", limit=200),
}

LIVE: dict[str, Any] = {
    **TINY,
    "surgery": {"attention": ["cbam"]},
    "pretraining": [{"epochs": 1, "lr": 0.01, "optimizer": "sgd"}],
    "stages": [  # by SGD, as Adam makes as much of a gradient that is rounding as of any other
        {"trains": ["attention"], "epochs": 1, "lr": 0.1, "optimizer": "sgd"},
        {"epochs": 2, "lr": 0.03, "accumulate": 2, "optimizer": "sgd"},
    ],
    "control": False,
    "data": within("data", batch_size=16, limit=96),  # 8 would freeze the statistics
    "sync_batchnorm": True,
}


@pytest.fixture
def recipe_file(tmp_path):
    return write_recipe(tmp_path / "frozen.toml", FROZEN)


def torchrun(*words: str) -> list[str]:
    return ["-m", "torch.distributed.run", *words]


def curve(output: Path, variant: str = "se") -> list[list[float]]:
    return json.loads((output / "seed0" / variant / "metrics.json").read_text())["steps"]


def assert_alike(output: Path, expected: Path):
    assert len(curve(output)) == len(curve(expected)) == 6 + 2 * 3
    for seen, wanted in zip(curve(output), curve(expected), strict=True):
        assert seen == pytest.approx(wanted, rel=2e-5, abs=2e-6)


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path, recipe_file):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["finetune", recipe_file, "--output"]
    alone = launched(DRIVER, "command", *words, str(one))
    assert alone.returncode == 0, alone.stderr
    together = launched(
        *torchrun("--standalone", "--nproc_per_node=2", DRIVER, "command"), *words, str(two)
    )
    assert together.returncode == 0, together.stderr
    assert_alike(two, one)
    assert len(list(two.rglob("events.out.tfevents.*"))) == 2  # the host's and se's
    assert together.stdout.count("se after") == 1
    assert together.stderr.count("stages.0 epoch 1") == 1


def test_synchronized_norms_give_cbam_the_curve_of_one_process(tmp_path):
    path = write_recipe(tmp_path / "live.toml", LIVE)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_recipe(read_recipe(path, [f"output={one}"])) is not None
    together = launched(
        *torchrun("--standalone", "--nproc_per_node=2", DRIVER, "command"),
        *["finetune", path, "--output", str(two)],
    )
    assert together.returncode == 0, together.stderr
    for variant, steps in (("host", 6), ("cbam", 6 + 2 * 3)):
        assert len(curve(two, variant)) == steps
        assert loss_difference(two, one, variant) <= 2e-5
    for file, tensors in weights(two).items():
        torch.testing.assert_close(tensors, weights(one)[file], rtol=1e-4, atol=1e-5)
    assert all(each.same for each in remeasure(two))


@pytest.mark.slow
def test_controls_end_together(tmp_path):
    """However their clocks go, all processes take as many steps, for the seconds of the first."""
    changes = {"pretraining": [], "controls": ["norms", "scale"], "budget": "seconds"}
    path = write_recipe(tmp_path / "timed.toml", {**FROZEN, **changes, "control": True})
    out = tmp_path / "out"
    together = launched(
        *torchrun("--standalone", "--nproc_per_node=2", DRIVER, "command"),
        *["finetune", path, "--output", str(out)],
    )
    assert together.returncode == 0, together.stderr
    told = {
        name: json.loads((out / "seed0" / name / "metrics.json").read_text())
        for name in ("se", "control-norms", "control-scale")
    }
    assert told["se"]["taken"] == [6, 6]
    for name in ("control-norms", "control-scale"):
        assert sum(told[name]["training_s"]) >= sum(told["se"]["training_s"])
        assert len(told[name]["steps"]) == sum(told[name]["taken"])
    assert "| se          | control-scale" in (out / "result.md").read_text()
    assert all(each.same for each in remeasure(out))


def loss_difference(output: Path, expected: Path, variant: str) -> float:
    """Return the largest relative difference of a step's loss."""
    pairs = zip(curve(output, variant), curve(expected, variant), strict=True)
    return max(abs(seen[1] - wanted[1]) / wanted[1] for seen, wanted in pairs)


@pytest.mark.slow
def test_two_machines(tmp_path, recipe_file):
    """Two nodes of torchrun that meet on the loopback address, and share no folder."""
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["finetune", recipe_file, "--output"]
    alone = launched(DRIVER, "command", *words, str(one))
    assert alone.returncode == 0, alone.stderr
    nodes = [
        subprocess.Popen(
            [
                sys.executable,
                *torchrun(
                    "--nnodes=2",
                    f"--node_rank={rank}",
                    "--nproc_per_node=1",
                    "--master_addr=127.0.0.1",
                    f"--master_port={port}",
                    DRIVER,
                    "command",
                ),
                *words,
                str((two, other)[rank]),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert_alike(two, one)
    assert not other.exists(), "the second machine writes nothing"


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path, recipe_file):
    """torchrun hands SIGTERM on; both save and end, and the same command continues."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["finetune", recipe_file, "--output"]
    assert launched(DRIVER, "command", *words, str(one)).returncode == 0
    both = [*torchrun("--standalone", "--nproc_per_node=2", DRIVER, "command"), *words, str(two)]
    process = subprocess.Popen(
        [sys.executable, *both], env=environment(), stderr=subprocess.PIPE, text=True
    )
    checkpoint = two / "seed0" / "se" / "checkpoint.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.terminate()
    told = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "SIGTERM: saved; the same command continues" in told
    assert checkpoint.exists()
    again = launched(*both)
    assert again.returncode == 0, again.stderr
    assert_alike(two, one)


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided(tmp_path):
    odd = {**FROZEN, "data": within("data", batch_size=33)}
    path = write_recipe(tmp_path / "odd.toml", odd)
    words = ["command", "finetune", path, "--output", str(tmp_path / "out")]
    failed = launched(*torchrun("--standalone", "--nproc_per_node=2", DRIVER), *words)
    assert failed.returncode != 0
    assert "batch_size=33 cannot be divided among 2 processes" in failed.stderr
