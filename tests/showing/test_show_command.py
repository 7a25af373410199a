"""``attn-surgery show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from showing_hosts import net

import attn_surgery
from attn_surgery import cli

pytest.importorskip("pytorch_grad_cam")
MODEL = "showing_hosts:net"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = attn_surgery.apply(net(), "se")
    with torch.no_grad():
        for each in attn_surgery.inserted(model).values():
            each.get_parameter("fc2.bias").fill_(1.0)
    attn_surgery.save(model, "se.safetensors")
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "images" / label / "x.png")
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    return tmp_path


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    status = cli.main(("show", *words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command(folder: Path, capsys: Any) -> None:
    words = [MODEL, "--weights", "se.safetensors", "--images", "images", "--device", "cpu"]
    status, out, err = run(capsys, *words, "--classes", "names.txt", "--target", "cow")
    assert (status, err) == (0, "")
    assert "cats/x.png" in out
    assert "the model differs from it in attention alone" in out
    assert "written: sheet.png, page.html, arrays.npz" in out
    assert all(
        (folder / name).stat().st_size > 0 for name in ("sheet.png", "page.html", "arrays.npz")
    )
    status, out, _ = run(capsys, *words, "--json", "--output", "a.npz", "--method", "none")
    data = json.loads(out)
    assert status == 0
    assert data["model"] == MODEL
    assert data["layer"] is None
    # a gate of 2 sigmoid(1) everywhere
    assert data["sites"][0]["median"] == pytest.approx(2 * torch.tensor(1.0).sigmoid().item())
    assert (folder / "a.npz").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "x.bmp"], "cannot save x.bmp"),
        (["--output", "gone/x.png"], "there is no folder gone"),
        (["--classes", "gone.txt"], "cannot read the classes"),
        (["--method", "CAM"], "method='CAM' is not supported"),
        (["--layer", "stm"], "did you mean 'stem'"),
        (["--images", "gone.png"], "cannot read gone.png"),
    ],
)
def test_mistakes_are_one_line(folder: Path, capsys: Any, words: list[str], expected: str) -> None:
    asked = [MODEL, "--weights", "se.safetensors", "--device", "cpu"]
    images = [] if "--images" in words else ["--images", "images"]
    status, out, err = run(capsys, *asked, *images, *words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err
