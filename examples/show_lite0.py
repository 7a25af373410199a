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
from PIL import Image, ImageDraw
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


def share_in_box(activation: Any, image: Image.Image, box: tuple, transform: Any) -> float:
    """Return how much of a map ``(h, w)`` lies in a box, cropped as the image was, in percent."""
    drawn = Image.new("RGB", image.size)
    corners = [side * part for side, part in zip((*image.size, *image.size), box, strict=True)]
    ImageDraw.Draw(drawn).rectangle(corners, fill="white")
    inside = transform(drawn)[0] > 0
    shares = F.interpolate(torch.tensor(activation)[None, None], inside.shape, mode="bilinear")
    return 100 * (shares[0, 0][inside].sum() / shares.sum()).item()


def main(
    steps: int = 150, folder: str | Path = ".", names: tuple[str, ...] = tuple(BOXES)
) -> list[tuple[str, float, float]]:
    """Train, show and measure; each photograph's share within its box, host's and operated."""
    torch.manual_seed(0)
    photographs = {name: photograph(name) for name in names}
    several = list(photographs.values())
    host = efficientnet_lite0().eval().requires_grad_(False)
    transform = create_transform(**resolve_model_data_config(host))
    host.classifier = nn.Linear(1280, len(names))
    train(host, several, 1e-2, steps)

    model = attn_surgery.apply(host, "cbam").train()
    freeze(model, "*")  # all but the attention
    freeze_norm_statistics(model)
    train(model, several, 5e-3, steps)

    gallery = attn_surgery.show(model, photographs, classes=names, name="EfficientNet-Lite0")
    print(gallery)
    gallery.save(Path(folder, "page.html"))
    gallery.save(Path(folder, "arrays.npz"))
    few = dict(list(photographs.items())[:4])
    sheet = attn_surgery.show(model, few, classes=names, name="EfficientNet-Lite0")
    sheet.save(Path(folder, "sheet.png"))
    rows = []
    for shown in gallery.images:
        place = photographs[shown.name], BOXES[shown.name], transform
        maps = (shown.host.activation_map, shown.operated.activation_map)
        rows.append((shown.name, *(share_in_box(each, *place) for each in maps)))
    return rows


if __name__ == "__main__":
    print("\nshare of the class activation map within the box (%): host, operated, difference")
    for name, host, operated in main():
        print(f"{name:18} {host:6.1f} {operated:6.1f} {operated - host:+6.1f}")
