"""Fine-tune a 3-D segmentation network of MONAI (``pip install monai``).

To watch:

- A bundle builds ``network_def`` anew wherever it is parsed: operate in its ``network``, as here,
  before ``.to(device)``, DDP and the optimizer.
- ``copy_model_state`` copies what has the same name and shape, and only counts the rest: into a
  host it loses the attention; of a host's weights it leaves the attention as it is.

``python examples/monai_segmentation.py`` runs on generated volumes, in seconds.
"""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.utils import copy_model_state
from monai.transforms import Compose, RandFlipd, ScaleIntensityd
from torch import Tensor, nn

import attn_surgery
from attn_surgery.finetune import param_groups

BUNDLE = {
    "imports": ["$import attn_surgery"],
    "network_def": {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "init_filters": 8,
        "blocks_down": [1, 2],
        "blocks_up": [1],
    },
    "network": "$attn_surgery.apply(@network_def, 'cbam')",
}
"""What a bundle's ``configs/train.json`` says of the network."""


def build(part: str = "network") -> nn.Module:
    """Return the network with attention, or, as ``network_def``, without."""
    parser = ConfigParser(BUNDLE)
    parser.parse()
    return parser.get_parsed_content(part)


def volumes(count: int) -> list[dict[str, Any]]:
    """Generate volumes ``(1, D, H, W)`` and their masks: noise, and where it is above 0."""
    images = torch.randn(count, 1, 24, 24, 24)
    return [{"image": image, "label": (image > 0).float()} for image in images]


@torch.no_grad()
def segment(model: nn.Module, volume: Tensor) -> Any:
    """Return the logits ``(N, 2, D, H, W)`` of volumes of any size."""
    return sliding_window_inference(volume, (16, 16, 16), 4, model.eval())


def main(epochs: int = 1, folder: str | Path = ".") -> nn.Module:
    """Train, save, and load into fresh hosts; what was trained."""
    model, flip = build(), RandFlipd(("image", "label"), prob=0.5, spatial_axis=0)
    data = Dataset(volumes(4), Compose([ScaleIntensityd("image"), flip]))
    groups = param_groups(model, 1e-3, 10.0, weight_decay=1e-5, attention_weight_decay=0.0)
    optimizer, dice = torch.optim.AdamW(groups), DiceCELoss(to_onehot_y=True, softmax=True)
    for _ in range(epochs):
        model.train()
        for batch in DataLoader(data, batch_size=2):
            loss = dice(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    volume = torch.randn(1, 1, 24, 24, 24)
    expected = segment(model, volume)
    attn_surgery.save(model, path := Path(folder, "attention.safetensors"), host="all")
    assert torch.equal(segment(attn_surgery.load(build("network_def"), path), volume), expected)

    torch.save(model.state_dict(), path := Path(folder, "model.pt"))
    fresh = build()
    _, _, unchanged = copy_model_state(fresh, torch.load(path, weights_only=True))
    assert not unchanged  # by a host's own weights the attention is
    assert torch.equal(segment(fresh, volume), expected)
    return model


if __name__ == "__main__":
    main()
