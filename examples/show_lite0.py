"""Train attention in a frozen EfficientNet-Lite0, and look at what it does.

ImageNet's weights, and ten of scikit-image's photographs: a new head learns to tell by a small,
disturbed crop which one it is from; then CBAM does, and all else stays. ``python
examples/show_lite0.py`` writes sheet.png, page.html and arrays.npz, and prints how much of each
class activation map lies in a box around the object: minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import skimage.data
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

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
    "stereo_motorcycle": (0.12, 0.15, 0.88, 0.92),
}
CROP = v2.Compose(
    [
        v2.RandomResizedCrop(128, scale=(0.02, 0.2)),
        v2.RandomGrayscale(0.5),
        v2.ColorJitter(0.5, 0.5),
        v2.GaussianBlur(7, (0.1, 3.0)),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def photograph(name: str) -> Image.Image:
    """Return one of scikit-image's photographs."""
    found = getattr(skimage.data, name)()
    return Image.fromarray(found[0] if isinstance(found, tuple) else found).convert("RGB")


def batches(photographs: list[Image.Image], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield crops ``(N, 3, 128, 128)``, and from which photograph each is ``(N,)``."""
    for _ in range(steps):
        labels = torch.randint(len(photographs), (16,))
        yield torch.stack([CROP(photographs[i]) for i in labels]), labels


def train(model: nn.Module, photographs: list[Image.Image], lr: float, steps: int) -> None:
    """Train what requires a gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    for images, labels in batches(photographs, steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module, photographs: list[Image.Image], steps: int) -> float:
    """Return how many new crops are told apart, in percent."""
    model.eval()
    with torch.no_grad():
        right = [model(x).argmax(1) == labels for x, labels in batches(photographs, steps)]
    return 100 * torch.cat(right).float().mean().item()


def share_in_box(activation: Any, box: tuple[float, ...]) -> float:
    """Return how much of a map ``(h, w)`` of a whole photograph lies in a box, in percent."""
    left, top, right, bottom = (round(224 * side) for side in box)
    fine = F.interpolate(torch.tensor(activation)[None, None], (224, 224), mode="bilinear")[0, 0]
    return 100 * (fine[top:bottom, left:right].sum() / fine.sum()).item()


def main(
    steps: int = 150,
    folder: str | Path = ".",
    *,
    names: tuple[str, ...] = tuple(BOXES),
    seed: int = 0,
) -> list[tuple[str, float, float]]:
    """Train, show and measure; each photograph's share within its box, host's and operated."""
    torch.manual_seed(seed)
    photographs = {name: photograph(name) for name in names}
    several = list(photographs.values())
    host = efficientnet_lite0().eval().requires_grad_(False)
    # the whole photograph, not its centre
    seen = {**resolve_model_data_config(host), "crop_mode": "squash", "crop_pct": 1.0}
    transform: Any = create_transform(**seen)
    host.classifier = nn.Linear(1280, len(names))
    train(host, several, 1e-2, steps)
    before = accuracy(host, several, steps)

    model = attn_surgery.apply(host, "cbam").train()
    freeze(model, "*")  # all but the attention
    freeze_norm_statistics(model)
    train(model, several, 2e-3, steps)
    after = accuracy(model, several, steps)
    print(f"crops told apart: {before:.1f} % by the host, {after:.1f} % with attention\n")

    asked = {"transform": transform, "classes": names, "name": "EfficientNet-Lite0"}
    gallery = attn_surgery.show(model, photographs, **asked)
    print(gallery)
    gallery.save(Path(folder, "page.html"))
    gallery.save(Path(folder, "arrays.npz"))
    few = dict(list(photographs.items())[:4])
    attn_surgery.show(model, few, **asked).save(Path(folder, "sheet.png"))
    rows = []
    for shown in gallery.images:
        maps = (shown.host.activation_map, shown.operated.activation_map)
        rows.append((shown.name, *(share_in_box(each, BOXES[shown.name]) for each in maps)))
    return rows


if __name__ == "__main__":
    measured = main()
    print("\nof the photograph, of the host's map and of the operated model's within the box (%)")
    for name, host, operated in measured:
        left, top, right, bottom = BOXES[name]
        area = 100 * (right - left) * (bottom - top)
        print(f"{name:18} {area:6.1f} {host:6.1f} {operated:6.1f} {operated - host:+6.1f}")
