"""Put SE into the backbone of a torchvision detector and fine-tune it.

The loop of torchvision's ``references/detection``, with the untouched detector as a teacher: it
classifies the regions that the student looks at. ``python examples/torchvision_detection.py`` runs
on generated images and boxes, in seconds; a real run starts with ``weights="DEFAULT"``.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

import attn_surgery
from attn_surgery.finetune import distillation_loss, freeze, freeze_norm_statistics, param_groups


def batch(size: int = 2) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images ``(3, H, W)`` and what is in them: noise with one box each."""
    box = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    return [torch.rand(3, 96, 96) for _ in range(size)], [box] * size


def watch(detector: Any) -> dict[str, Any]:
    """Keep what the detector last saw and said: images, regions, class logits per region."""
    seen: dict[str, Any] = {}
    heads = detector.roi_heads
    detector.backbone.register_forward_hook(lambda _, args, out: seen.update(images=args[0]))
    heads.box_roi_pool.register_forward_hook(lambda _, args, out: seen.update(regions=args[1:]))
    heads.box_predictor.register_forward_hook(lambda _, args, out: seen.update(logits=out[0]))
    return seen


@torch.no_grad()
def classify(detector: Any, seen: dict[str, Any]) -> Tensor:
    """Return a detector's class logits ``(regions, classes)`` for another's regions."""
    heads = detector.roi_heads
    pooled = heads.box_roi_pool(detector.backbone(seen["images"]), *seen["regions"])
    return heads.box_predictor(heads.box_head(pooled))[0]


def build() -> Any:
    """Return the host."""
    return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=96
    )


def main(steps: int = 2, folder: str | Path = ".") -> list[float]:
    """Train, save, and load into a fresh host; the losses."""
    model = build()
    teacher = copy.deepcopy(model).eval()
    attn_surgery.apply(model, "se", where="backbone.*")
    freeze(model, "backbone.body.[0-5]")  # but not the attention in there
    freeze_norm_statistics(model)  # two images are no batch for statistics
    seen = watch(model)

    groups = param_groups(model, lr=0.005, attention_weight_decay=0.0)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    losses = []
    model.train()
    for _ in range(steps):
        parts = model(*batch())
        loss = sum(parts.values()) + distillation_loss(seen["logits"], classify(teacher, seen))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    attn_surgery.save(model, Path(folder, "detector.safetensors"), host="all")
    fresh = attn_surgery.load(build(), Path(folder, "detector.safetensors"))
    images = torch.rand(1, 3, 96, 96)
    expected, maps = (each.eval().get_submodule("backbone")(images) for each in (model, fresh))
    assert all(torch.equal(maps[level], expected[level]) for level in expected)
    return losses


if __name__ == "__main__":
    print(", ".join(f"{loss:.3f}" for loss in main()))
