"""Fine-tune a timm model in the way of timm's ``train.py``, which can run it unchanged.

To watch:

- ``train.py`` knows models by name: register one that operates on another, import it there, and
  give ``--model resnet18_cbam``. Pretrained weights are loaded within, before the surgery;
  ``--initial-checkpoint`` and ``--resume`` after it, so they take files of operated models.
- EMA, DDP and ``torch.compile`` come after the surgery, ``SyncBatchNorm`` before.
- ``layer_decay`` gives the attention the rate of its block: give ``param_group_fn`` instead.

``python examples/timm_train.py`` runs on generated images, in seconds.
"""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint, register_model, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery.finetune import param_groups


@register_model
def resnet18_cbam(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return timm's ResNet-18 with CBAM, for ``create_model`` and ``--model``."""
    return attn_surgery.apply(timm.create_model("resnet18", pretrained, **options), "cbam")


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Give the attention ten times the learning rate and no weight decay."""
    return param_groups(model, 1e-3, 10.0, weight_decay=0.02, attention_weight_decay=0.0)


def batches(steps: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images ``(N, 3, H, W)`` and labels ``(N,)``: noise here."""
    for _ in range(steps):
        yield torch.randn(8, 3, 64, 64), torch.randint(10, (8,))


def main(epochs: int = 2, folder: str | Path = ".") -> nn.Module:
    """Train, save, resume, and load into a fresh host; the average of what was trained."""
    model = timm.create_model("resnet18_cbam", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, param_group_fn=groups)
    average = ModelEmaV3(model, decay=0.9)
    scaler = NativeScaler(device="cpu")
    scheduler: Any = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)[0]
    saver = CheckpointSaver(
        model, optimizer, model_ema=average, amp_scaler=scaler, checkpoint_dir=str(folder)
    )
    for epoch in range(epochs):
        for images, labels in batches():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model.train()(images), labels)
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
            average.update(model)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=epoch)

    # --resume: optimizer and scaler, too
    last, images = str(Path(folder, "last.pth.tar")), torch.randn(2, 3, 64, 64)
    again = timm.create_model("resnet18_cbam", num_classes=10)
    optimizer = create_optimizer_v2(again, opt="adamw", lr=1e-3, param_group_fn=groups)
    assert resume_checkpoint(again, last, optimizer, scaler) == epochs
    assert torch.equal(again.eval()(images), model.eval()(images))

    load_checkpoint(again, last, use_ema=True)
    expected = average(images)
    assert torch.equal(again(images), expected)
    attn_surgery.save(average.module, path := Path(folder, "attention.safetensors"), host="all")
    host = timm.create_model("resnet18", num_classes=10).eval()
    assert torch.equal(attn_surgery.load(host, path)(images), expected)
    return average.module


if __name__ == "__main__":
    main()
