"""Fine-tune a YOLO of Ultralytics with attention (``pip install ultralytics``: AGPL-3.0).

To watch:

- The trainer builds the model anew, in ``get_model``, and loads by name what fits: a surgery from
  before is lost without a word. So it is done there, before weights are loaded, trained attention's
  too (``resume``, ``model="last.pt"``).
- It unfreezes all but what ``freeze=[...]`` names, and freezes the attention in there, too.
- Its ``.pt`` are pickles in half precision, which need attn_surgery to be opened.

``python examples/ultralytics_yolo.py`` runs on generated images and boxes, in seconds.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")  # nothing is fetched; weights need this line away

import torch
from torch import nn
from torchvision.io import write_png
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import attn_surgery
from attn_surgery.finetune import param_groups


class AttentionTrainer(DetectionTrainer):
    """A trainer whose models hold attention, from the first step to the last checkpoint."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the host, operate, and load by name what the weights hold for either."""
        model: Any = attn_surgery.apply(super().get_model(cfg, None, verbose), "cbam")
        if weights:
            model.load(weights)
        return model

    def build_optimizer(self, model: nn.Module, *_: Any, **asked: Any) -> torch.optim.Optimizer:
        """Give the attention ten times the learning rate, and gates and biases no decay."""
        decays = {"weight_decay": asked["decay"], "attention_weight_decay": 0.0}
        groups = param_groups(model, self.args.lr0, attention_lr_scale=10.0, **decays)
        return torch.optim.AdamW(groups, betas=(self.args.momentum, 0.999))


def generated(folder: Path, images: int = 4) -> str:
    """Write a data set of noise with one box each; the path of its YAML."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        noise = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
        write_png(noise, str(folder / f"images/{number}.png"))
        (folder / f"labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.6\n")
    data = {"path": str(folder), "train": "images", "val": "images", "names": ["thing"]}
    path = folder / "data.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    return str(path)


def main(epochs: int = 1, folder: str | Path = ".") -> nn.Module:
    """Train, save, and load into fresh hosts; the average of what was trained."""
    folder = Path(folder).resolve()
    yolo: Any = YOLO("yolov8n.yaml")  # or "yolov8n.pt"
    size = {"epochs": epochs, "batch": 2, "imgsz": 64, "workers": 0, "device": "cpu"}
    rates = {"lr0": 1e-3, "warmup_bias_lr": 0.0, "amp": False}
    files = {"project": str(folder), "name": "run", "exist_ok": True, "plots": False}
    data = generated(folder / "data")
    yolo.train(trainer=AttentionTrainer, data=data, **size, **rates, **files)
    trained = yolo.trainer.ema.ema
    assert attn_surgery.inserted(trained)

    images = torch.rand(2, 3, 64, 64)
    expected = trained(images)[0]
    attn_surgery.save(trained, folder / "attention.safetensors", host="all")
    host = DetectionModel("yolov8n.yaml", nc=1, verbose=False).eval()
    fresh = attn_surgery.load(host, folder / "attention.safetensors")
    assert torch.equal(fresh(images)[0], expected)

    again: Any = YOLO(folder / "run/weights/best.pt").model  # a pickle, in half precision
    torch.testing.assert_close(again(images)[0], expected, rtol=0.02, atol=0.1)
    return trained


if __name__ == "__main__":
    main()
