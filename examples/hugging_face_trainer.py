"""Fine-tune an image classifier with transformers' ``Trainer`` (``pip install transformers``).

To watch:

- ``from_pretrained`` first, surgery second. Of the folder of an operated model it makes the host
  alone, the attention reported as unexpected keys, whatever ``ignore_mismatched_sizes`` says.
- A class that operates in its ``__init__`` loads such a folder whole; but where a host's folder
  lacks the attention, transformers draws it anew, and it does not start as the identity.
- ``resume_from_checkpoint`` and ``load_best_model_at_end`` load what fits: give the trainer an
  operated model, and a ``model_init`` that operates.

``python examples/hugging_face_trainer.py`` runs on generated images, in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import attn_surgery
from attn_surgery.finetune import param_groups


class Images(Dataset[dict[str, Any]]):
    """Generated images ``(3, H, W)`` with their labels, as an image processor would give them."""

    def __init__(self, length: int):
        self.pixel_values, self.labels = torch.randn(length, 3, 64, 64), torch.arange(length) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class AttentionTrainer(Trainer):
    """A trainer with ten times the learning rate for the attention, and no weight decay."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer once; the scheduler scales every group's own rate."""
        if self.optimizer is None:
            groups = param_groups(
                model or self.model,  # pyright: ignore[reportArgumentType]
                self.args.learning_rate,
                attention_lr_scale=10.0,
                weight_decay=self.args.weight_decay,
                attention_weight_decay=0.0,
            )
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer


def build() -> ResNetForImageClassification:
    """Return the host; a real run calls ``from_pretrained("microsoft/resnet-50", ...)``."""
    settings: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}
    settings |= {"layer_type": "basic", "num_labels": 4}
    return ResNetForImageClassification(ResNetConfig(**settings))


def main(steps: int = 4, folder: str | Path = ".") -> nn.Module:
    """Train, save, and load into fresh hosts; what was trained."""
    model = attn_surgery.apply(build(), "cbam")
    settings = {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    settings |= {"weight_decay": 0.02, "report_to": "none", "save_strategy": "no"}
    args = TrainingArguments(str(folder), **settings)
    trainer = AttentionTrainer(model=model, args=args, train_dataset=Images(8 * steps))
    trainer.train()

    images = torch.randn(2, 3, 64, 64)
    expected = model.cpu().eval()(images).logits
    attn_surgery.save(model, Path(folder, "attention.safetensors"), host="all")
    fresh = attn_surgery.load(build(), Path(folder, "attention.safetensors")).eval()
    assert torch.equal(fresh(images).logits, expected)

    trainer.save_model(str(folder))  # a folder of transformers: operate first, then load its keys
    fresh = attn_surgery.apply(build(), "cbam").eval()
    fresh.load_state_dict(load_file(Path(folder, "model.safetensors")))
    assert torch.equal(fresh(images).logits, expected)
    return model


if __name__ == "__main__":
    main()
