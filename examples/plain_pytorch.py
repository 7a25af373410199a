"""Put CBAM into a network and fine-tune it in a training loop of your own.

Two stages: attention alone, then everything but the first layers, with the untouched host as the
teacher. ``python examples/plain_pytorch.py`` runs on generated images, in seconds; put your data in
the place of ``batches`` and a pretrained host in the place of ``resnet18()``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery.finetune import distillation_loss, freeze, freeze_norm_statistics, param_groups


def batches(steps: int, classes: int = 10) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images ``(N, 3, H, W)`` and labels ``(N,)``: noise here."""
    for _ in range(steps):
        yield torch.randn(8, 3, 64, 64), torch.randint(classes, (8,))


def train(model: nn.Module, teacher: nn.Module, lr: float, steps: int) -> list[float]:
    """Train what requires a gradient; the loss of each step."""
    groups = param_groups(model, lr, attention_lr_scale=10.0, attention_weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    model.train()
    for images, labels in batches(steps):
        with torch.no_grad():
            expected = teacher(images)
        predicted = model(images)
        loss = F.cross_entropy(predicted, labels)
        loss = loss + distillation_loss(predicted, expected, temperature=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 4, folder: str | Path = ".") -> list[float]:
    """Run both stages and save; the losses."""
    host = torchvision.models.resnet18(num_classes=10)
    teacher = copy.deepcopy(host).eval()
    model = attn_surgery.apply(host, "cbam")

    # Attention alone: no parameter and no running statistic of the host moves.
    freeze(model, "*")
    with freeze_norm_statistics(model):
        losses = train(model, teacher, lr=1e-3, steps=steps)
    attn_surgery.save(model, Path(folder, "attention.safetensors"))

    # Everything, but for the stem and the first stage; the attention in there trains on.
    model.requires_grad_(True)
    freeze(model, ["conv1", "bn1", "layer1"])
    losses += train(model, teacher, lr=1e-4, steps=steps)
    attn_surgery.save(model, Path(folder, "all.safetensors"), host="all")

    fresh = torchvision.models.resnet18(num_classes=10)
    attn_surgery.load(fresh, Path(folder, "all.safetensors"))
    images, _ = next(batches(1))
    assert torch.equal(fresh.eval()(images), model.eval()(images))
    return losses


if __name__ == "__main__":
    print(", ".join(f"{loss:.3f}" for loss in main()))
