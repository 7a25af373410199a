"""Interrupted at any moment, a run ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.progress import Display
from attn_surgery.finetune.process import checkpoints
from attn_surgery.finetune.running import run_recipe
from attn_surgery.host import files
from attn_surgery.host.files import write_whole
from tests.finetuning import (
    DRIVER,
    TINY,
    environment,
    launched,
    tiny,
    weights,
    within,
    write_recipe,
)


@pytest.fixture
def recipe_file(tmp_path):
    return write_recipe(tmp_path / "tiny.toml", TINY)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    output = tmp_path_factory.mktemp("reference")
    run_recipe(tiny(output))
    return weights(output)


def assert_same(seen, expected):
    assert seen.keys() == expected.keys()
    for name, state in expected.items():
        assert state.keys() == seen[name].keys()
        assert all(torch.equal(seen[name][key], value) for key, value in state.items()), name


@pytest.mark.parametrize("name", ["KILL", pytest.param("TERM", marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path, recipe_file, reference, name):
    output = tmp_path / "out"
    done = launched(DRIVER, name, "1", "5", str(output), "finetune", recipe_file)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    expected = {"KILL": -9, "TERM": 143}[name]
    # -15: it came when all was trained and saved, and the costs were being counted.
    assert set(ended[:-1]) <= {expected, 0, -15}, done.stderr
    assert expected in ended
    assert ended[-1] == 0, done.stderr
    assert_same(weights(output), reference)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["no", "bf16"])
def test_a_machine_that_goes_again_and_again(tmp_path, monkeypatch, amp):
    """The process dies after every third checkpoint."""
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    run_recipe(tiny(undisturbed, amp=amp))
    recipe = tiny(output, amp=amp)
    real, died_in = checkpoints.write_whole, []
    turns = itertools.count(1)

    def dying(path, content):
        real(path, content)
        if path.name == "checkpoint.pt" and next(turns) % 3 == 0:
            died_in.append(path.parent.name)
            raise ConnectionAbortedError("as if the machine had gone")

    monkeypatch.setattr(checkpoints, "write_whole", dying)
    for _ in range(30):
        with contextlib.suppress(ConnectionAbortedError):
            run_recipe(recipe)
            break
    assert all(died_in.count(run) > 1 for run in ("host", "control", "cbam")), died_in
    assert_same(weights(output), weights(undisturbed))


def test_a_full_disk_loses_nothing(tmp_path, reference, monkeypatch):
    output, recipe = tmp_path / "out", tiny(tmp_path / "out")
    real, left = files.os.fsync, [9]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SurgeryError, match=r"cannot write .*No space left.*before is whole"):
        run_recipe(recipe)
    assert not list(output.rglob("*.partial"))
    monkeypatch.undo()
    run_recipe(recipe)
    assert_same(weights(output), reference)


def test_a_file_is_the_old_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def failing(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(SurgeryError, match="No space left"):
        write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_a_checkpoint_of_another_recipe(tmp_path, monkeypatch):
    class GoneError(Exception):
        pass

    def gone(*_):
        raise GoneError

    monkeypatch.setattr("attn_surgery.finetune.experiment.loop.end_epoch", gone)
    with pytest.raises(GoneError):
        run_recipe(tiny(tmp_path))
    other = within("data", batch_size=16)
    with pytest.raises(SurgeryError, match=r"another recipe: data.batch_size is 32 .* 16 here"):
        run_recipe(tiny(tmp_path, data=other))


def test_a_finished_run_of_another_recipe(tmp_path):
    run_recipe(tiny(tmp_path, surgery={"attention": []}))
    changed = [{**TINY["stages"][0], "lr": 0.5}, TINY["stages"][1]]
    with pytest.raises(SurgeryError, match=r"metrics.json is of another recipe: stages.0.lr"):
        run_recipe(tiny(tmp_path, stages=changed))


def test_more_seeds_and_attentions_are_added_to_what_is_there(tmp_path):
    run_recipe(tiny(tmp_path, surgery={"attention": []}))
    before = weights(tmp_path)
    outcome = run_recipe(tiny(tmp_path, surgery={"attention": ["eca"]}, seeds=2))
    assert outcome is not None
    assert [len(line.scores) for line in outcome.lines] == [2, 2, 2]
    after = weights(tmp_path)
    assert_same({name: after[name] for name in before}, before)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04."])
def test_a_damaged_checkpoint(tmp_path, content):
    folder = tmp_path / "seed0" / "host"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(SurgeryError, match=r"checkpoint.pt is no checkpoint of a run.*remove it"):
        run_recipe(tiny(tmp_path))


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    folder = tmp_path / "seed0" / "host"
    folder.mkdir(parents=True)
    torch.save(Evil(), folder / "checkpoint.pt")
    with pytest.raises(SurgeryError, match="is no checkpoint"):
        run_recipe(tiny(tmp_path))
    assert not (tmp_path / "touched").exists()


def test_a_signal_to_all_processes_ends_cleanly(tmp_path):
    """As Ctrl-C in a terminal and batch systems send it: those that read images get it, too."""
    table = {**TINY, "data": within("data", workers=2), "seeds": 20}
    words = ["finetune", write_recipe(tmp_path / "slow.toml", table), "--output"]
    process = subprocess.Popen(
        [sys.executable, DRIVER, "command", *words, str(tmp_path / "out")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list(tmp_path.rglob("checkpoint.pt")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "SIGTERM: saved; the same command continues" in told


def test_logs_on_a_full_disk(tmp_path, monkeypatch):
    display = Display("run", 10, 0, tmp_path / "logs")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(display.writer, "add_scalar", full)
    with pytest.raises(SurgeryError, match=r"cannot write to .*logs: .*No space left"):
        display.log(1, loss=1.0)
    display.close()
