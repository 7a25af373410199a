"""Fine-tune a network with attention under Lightning (``pip install lightning``).

To watch:

- Operate in ``__init__``: ``load_from_checkpoint`` runs it before it loads, but not ``setup``. In
  ``configure_model``, which runs more than once, ask ``attn_surgery.inserted`` first.
- ``BackboneFinetuning`` freezes the attention in its backbone: ``freeze`` does not.
- ``sync_batchnorm=True`` replaces norms after the surgery: convert the host before it.

``python examples/lightning_module.py`` runs on generated images, in seconds.
"""

from __future__ import annotations

import copy
from pathlib import Path

import lightning
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import attn_surgery
from attn_surgery.finetune import distillation_loss, freeze, freeze_norm_statistics, param_groups


class FineTuning(lightning.LightningModule):
    """A host with attention, taught by labels and by the untouched host."""

    def __init__(self, host: nn.Module, lr: float = 1e-3):
        super().__init__()
        self.lr = lr
        # In a list, the teacher is no child: not trained, not saved, never in training mode.
        self.teacher = [copy.deepcopy(host).eval()]
        self.model = attn_surgery.apply(host, "cbam")
        freeze(self.model, ["conv1", "bn1", "layer1"])
        freeze_norm_statistics(self.model)  # whatever the trainer does with train() and eval()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Compute the loss of images ``(N, 3, H, W)`` and labels ``(N,)``."""
        images, labels = batch
        with torch.no_grad():
            expected = self.teacher[0].to(images.device)(images)
        predicted = self.model(images)
        loss = F.cross_entropy(predicted, labels) + distillation_loss(predicted, expected, 2.0)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the attention ten times the learning rate of the host, and no weight decay."""
        return torch.optim.AdamW(
            param_groups(self.model, self.lr, attention_lr_scale=10.0, attention_weight_decay=0.0)
        )


def main(steps: int = 4, folder: str | Path = ".") -> float:
    """Train, save, and load into fresh hosts; the last loss."""
    images, labels = torch.randn(8 * steps, 3, 64, 64), torch.randint(10, (8 * steps,))
    module = FineTuning(torchvision.models.resnet18(num_classes=10))
    trainer = lightning.Trainer(
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))

    trainer.save_checkpoint(checkpoint := Path(folder, "last.ckpt"))
    host = torchvision.models.resnet18(num_classes=10)
    again = FineTuning.load_from_checkpoint(checkpoint, host=host).cpu().eval()
    expected = module.cpu().eval().model(images[:2])
    assert torch.equal(again.model(images[:2]), expected)
    attn_surgery.save(module.model, path := Path(folder, "attention.safetensors"), host="all")
    fresh = attn_surgery.load(torchvision.models.resnet18(num_classes=10), path).eval()
    assert torch.equal(fresh(images[:2]), expected)
    return trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    print(f"{main():.3f}")
