"""Fine-tune a classifier in the way of torchvision's ``references/classification/train.py``.

To watch:

- Operate after ``get_model`` and ``convert_sync_batchnorm``, before the optimizer, EMA and DDP.
- ``set_weight_decay`` knows no learning rates, and compares a custom key without a dot with the
  whole name of a parameter: ``("attn", 0.0)`` selects nothing. `grouped` takes its place.
- ``--resume`` fits a host after the same surgery.

``python examples/torchvision_classification.py`` runs on generated images, in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import attn_surgery
from attn_surgery.finetune import param_groups


def build() -> nn.Module:
    """Return a host with attention; a real run has ``weights="DEFAULT"`` in the call."""
    return attn_surgery.apply(torchvision.models.get_model("resnet18", num_classes=10), "cbam")


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Give norms and biases no weight decay, the attention neither, and ten times the rate."""
    return param_groups(model, 0.01, 10.0, weight_decay=1e-4, attention_weight_decay=0.0)


class Run:
    """All that a checkpoint holds: the model, what trains it, and its average."""

    def __init__(self, epochs: int):
        self.model = build()
        self.optimizer = torch.optim.SGD(grouped(self.model), momentum=0.9)
        self.lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)
        # of parameters and running statistics, a copy that is made after the surgery
        ema = get_ema_multi_avg_fn(0.9)
        self.model_ema = AveragedModel(self.model, multi_avg_fn=ema, use_buffers=True)
        self.epoch = 0

    def train_one_epoch(self, steps: int = 2) -> None:
        """Train on generated images ``(N, 3, H, W)`` and labels ``(N,)``."""
        self.model.train()
        for _ in range(steps):
            images, labels = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=0.1)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.model_ema.update_parameters(self.model)
        self.lr_scheduler.step()
        self.epoch += 1

    def save(self, path: Path) -> None:
        """Write a checkpoint with the keys of the references'."""
        parts = ("model", "optimizer", "lr_scheduler", "model_ema")
        state = {part: getattr(self, part).state_dict() for part in parts}
        torch.save({**state, "epoch": self.epoch}, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.epoch = state.pop("epoch")
        for part, values in state.items():
            getattr(self, part).load_state_dict(values)


def main(epochs: int = 2, folder: str | Path = ".") -> nn.Module:
    """Train, save, and go on in a fresh host; the average of what was trained."""
    path = Path(folder, "checkpoint.pth")
    run, again = Run(epochs), Run(epochs)
    while run.epoch < epochs:
        run.train_one_epoch()
        run.save(path)
    again.resume(path)
    images = torch.randn(2, 3, 64, 64)
    for part in ("model", "model_ema"):
        assert torch.equal(getattr(again, part).eval()(images), getattr(run, part).eval()(images))
    attn_surgery.save(run.model_ema.module, Path(folder, "attention.safetensors"), host="all")
    return run.model_ema.module


if __name__ == "__main__":
    main()
