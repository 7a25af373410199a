"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from safetensors import safe_open

import attn_surgery

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resnet() -> torch.nn.Module:
    """Return the host that an example makes after this seed."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10)


def test_every_example_is_short_and_tested():
    found = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(found) >= {"plain_pytorch", "lightning_module", "torchvision_detection"}
    assert all(f'example("{name}")' in Path(__file__).read_text() for name in found)
    assert max(found.values()) < 80


def test_plain_pytorch(tmp_path):
    torch.manual_seed(0)
    losses = example("plain_pytorch").main(steps=2, folder=tmp_path)
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    model = attn_surgery.load(resnet(), tmp_path / "attention.safetensors")
    assert len(attn_surgery.inserted(model)) == 8
    attn_surgery.load(resnet(), tmp_path / "all.safetensors")


def test_torchvision_detection(tmp_path):
    losses = example("torchvision_detection").main(steps=2, folder=tmp_path)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    with safe_open(tmp_path / "detector.safetensors", "pt") as file:
        keys = set(file.keys())
    assert {"backbone.body.1.attn.fc1.weight", "backbone.body.0.0.weight"} <= keys


# Lightning's own imports and trainer warn under the newest PyTorch.
@pytest.mark.filterwarnings("ignore")
def test_lightning_module(tmp_path):
    pytest.importorskip("lightning", reason="the example needs lightning, which is not installed")
    assert math.isfinite(example("lightning_module").main(steps=2, folder=tmp_path))
    attn_surgery.load(resnet(), tmp_path / "attention.safetensors")
