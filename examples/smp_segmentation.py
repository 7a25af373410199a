"""Fine-tune a U-Net of segmentation-models-pytorch (``pip install segmentation-models-pytorch``).

To watch:

- The encoder's weights are loaded as it is built: operate on what ``smp.create_model`` returns.
- ``smp.from_pretrained`` builds the host, which has no place for the attention: an error, or, with
  ``strict=False``, the attention is lost without a word.

``python examples/smp_segmentation.py`` runs on generated images and masks, in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import attn_surgery
from attn_surgery.finetune import freeze, freeze_norm_statistics, param_groups


def build() -> Any:
    """Return the host; a real run has ``encoder_weights="imagenet"``."""
    return smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, classes=1)


def batch() -> tuple[Tensor, Tensor]:
    """Generate images ``(N, 3, H, W)`` and masks ``(N, 1, H, W)``: where they are bright."""
    images = torch.randn(2, 3, 64, 64)
    return images, (images.mean(1, keepdim=True) > 0).float()


def train(model: nn.Module, steps: int) -> None:
    """Train the attention at ten times the learning rate and without weight decay."""
    groups = param_groups(model, 1e-3, 10.0, weight_decay=0.01, attention_weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    dice = smp.losses.DiceLoss("binary", from_logits=True)
    bce = smp.losses.SoftBCEWithLogitsLoss()
    model.train()
    for _ in range(steps):
        images, masks = batch()
        logits = model(images)
        loss = dice(logits, masks) + bce(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 4, folder: str | Path = ".") -> nn.Module:
    """Train, save, and load into fresh hosts; what was trained."""
    model: Any = attn_surgery.apply(build(), "cbam", where="encoder.*")
    freeze(model, ["encoder.conv1", "encoder.bn1", "encoder.layer1"])  # not the attention in there
    freeze_norm_statistics(model, "encoder")  # two images are no batch for statistics
    train(model, steps)

    images, _ = batch()
    expected = model.eval()(images)
    attn_surgery.save(model, Path(folder, "attention.safetensors"), host="all")
    fresh = attn_surgery.load(build(), Path(folder, "attention.safetensors")).eval()
    assert torch.equal(fresh(images), expected)

    model.save_pretrained(folder)  # a folder of smp: operate first, then load its keys
    fresh = attn_surgery.apply(build(), "cbam", where="encoder.*").eval()
    fresh.load_state_dict(load_file(Path(folder, "model.safetensors")))
    assert torch.equal(fresh(images), expected)
    return model


if __name__ == "__main__":
    main()
