"""Train attention in a frozen EfficientNet-Lite0, and look at what it does.

ImageNet's weights, ten of scikit-image's photographs: a new head learns to tell by a small,
disturbed crop from which one it is; then CBAM does, and all else stays. ``python
examples/show_lite0.py`` writes sheet.png, page.html and arrays.npz, and tells which share of each
class activation map lies in a box around the object, before and after: some minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import skimage.data
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery.finetune import efficientnet_lite0, freeze, freeze_norm_statistics

BOXES = {  # drawn by hand: left, top, right, bottom, as shares of width and height
    "astronaut": (0.06, 0.02, 0.72, 1.0),
    "chelsea": (0.08, 0.0, 0.82, 0.95),
    "coffee": (0.12, 0.04, 0.81, 0.97),
    "rocket": (0.46, 0.3, 0.55, 0.97),
    "camera": (0.03, 0.12, 0.55, 1.0),
    "cell": (0.66, 0.45, 0.9, 0.67),
    "clock": (0.36, 0.32, 0.7, 0.71),
    "moon": (0.18, 0.11, 0.3, 0.22),
    "retina": (0.08, 0.38, 0.23, 0.55),
    "stereo_motorcycle": (0.12, 0.15, 0.92, 0.92),
}
Photographs = Sequence[Image.Image]


def photograph(name: str) -> Image.Image:
    """Return one of scikit-image's photographs."""
    found = getattr(skimage.data, name)()
    return Image.fromarray(found[0] if isinstance(found, tuple) else found).convert("RGB")


def batches(photographs: Photographs, crop: Any, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield crops ``(N, 3, H, W)``, and from which photograph each is ``(N,)``."""
    for _ in range(steps):
        labels = torch.randint(len(photographs), (16,))
        yield torch.stack([crop(photographs[i]) for i in labels.tolist()]), labels


def train(model: nn.Module, photographs: Photographs, crop: Any, lr: float, steps: int) -> None:
    """Train what requires a gradient; tell how the loss fell."""
    losses = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    for images, labels in batches(photographs, crop, steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    few = min(10, steps)
    print(f"loss: {sum(losses[:few]) / few:.3f} at first, {sum(losses[-few:]) / few:.3f} at last")


def share_in_box(activation: Any, box: tuple[float, ...]) -> float:
    """Return which share of a map ``(h, w)`` of a whole photograph lies in a box, in percent."""
    left, top, right, bottom = (round(224 * side) for side in box)
    fine = F.interpolate(torch.tensor(activation)[None, None], (224, 224), mode="bilinear")[0, 0]
    return 100 * (fine[top:bottom, left:right].sum() / fine.sum()).item()


def main(
    steps: int = 100, folder: str | Path = ".", names: Sequence[str] = tuple(BOXES), seed: int = 0
) -> list[tuple[str, float, float]]:
    """Train, show and measure; the share in each photograph's box, of the host and after."""
    torch.manual_seed(seed)
    photographs = {name: photograph(name) for name in names}
    host = efficientnet_lite0().eval().requires_grad_(False)
    config = resolve_model_data_config(host)
    disturbed = {"scale": (0.02, 0.2), "grayscale_prob": 0.5, "gaussian_blur_prob": 0.5, "hflip": 0}
    crop = create_transform(**{**config, "input_size": 128, **disturbed}, is_training=True)
    host.classifier = nn.Linear(1280, len(names))
    train(host, list(photographs.values()), crop, 1e-2, steps)

    model = attn_surgery.apply(host, "cbam").train()
    freeze(model, "*")  # but for the attention
    freeze_norm_statistics(model)
    train(model, list(photographs.values()), crop, 2e-3, steps)

    # the whole photograph, not its central crop
    whole = create_transform(**{**config, "crop_mode": "squash", "crop_pct": 1.0})
    asked = {"transform": whole, "classes": names, "name": "EfficientNet-Lite0"}
    gallery = attn_surgery.show(model, photographs, **asked)
    print(gallery, end="\n\n")
    gallery.save(Path(folder, "page.html"))
    gallery.save(Path(folder, "arrays.npz"))
    few = {name: photographs[name] for name in names[:4]}
    attn_surgery.show(model, few, **asked).save(Path(folder, "sheet.png"))
    rows = []
    for each in gallery.images:
        before, after = (share_in_box(it.activation_map, BOXES[each.name]) for it in each.responses)
        rows.append((each.name, before, after))
    return rows


if __name__ == "__main__":
    measured = main()
    print("share of the map in the box (%): by chance (its area), the host's, after, difference")
    for name, host, operated in measured:
        left, top, right, bottom = BOXES[name]
        area = 100 * (right - left) * (bottom - top)
        print(f"{name:18} {area:6.1f} {host:6.1f} {operated:6.1f} {operated - host:+6.1f}")
