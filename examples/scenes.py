"""Make scenes with masks, for recipes that tell the class of each pixel.

To watch:

- A scene is a photograph of scikit-image's, darkened, with things of Fashion-MNIST before it, each
  of another size and in another place; what is in front hides what is behind.
- Both splits keep to theirs: what is measured holds test images of Fashion-MNIST, before
  photographs that no scene has that is learned.
- A mask is a PNG of one byte a pixel: 0 is background, 1 to 10 are the classes of Fashion-MNIST.

``python examples/scenes.py data/scenes`` writes ``train`` and ``val``, each with ``images`` and
``masks``, in a minute. Fashion-MNIST is taken from ``data``, or downloaded.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import skimage.data
import torchvision
from PIL import Image

SIDE, THINGS, SCALE = 64, 3, (0.7, 1.3)
"""Of a scene in pixels; how many things there are; how large they are, to their own size."""
DARKENED = 0.4
"""What is left of a photograph's light."""
THERE = 48
"""Of 255: from where a pixel of Fashion-MNIST is the thing, and not what is around it."""
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "immunohistochemistry", "rocket"),
    "val": ("chelsea", "retina"),
}
SCENES = {"train": 3000, "val": 1000}


def scene(
    things: list[tuple[Image.Image, int]], photograph: Image.Image, draw: random.Random
) -> tuple[Image.Image, Image.Image]:
    """Return an image ``(SIDE, SIDE)`` with things in it, and its mask."""
    left, top = (draw.randrange(side - SIDE + 1) for side in photograph.size)
    image = photograph.crop((left, top, left + SIDE, top + SIDE)).point(lambda p: DARKENED * p)
    mask = Image.new("L", image.size)
    for thing, number in things:
        side = round(draw.uniform(*SCALE) * thing.width)
        there = thing.resize((side, side)).point([255 * (p >= THERE) for p in range(256)])
        place = (draw.randrange(SIDE - side + 1), draw.randrange(SIDE - side + 1))
        image.paste(thing.resize((side, side)).convert("RGB"), place, there)
        mask.paste(number + 1, place, there)
    return image, mask


def make(folder: Path, data: Path, scenes: dict[str, int]) -> None:
    """Write both splits."""
    for split, count in scenes.items():
        things = torchvision.datasets.FashionMNIST(str(data), split == "train", download=True)
        photographs = [
            Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS[split]
        ]
        draw = random.Random(split)
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            chosen = [things[draw.randrange(len(things))] for _ in range(THINGS)]
            image, mask = scene(chosen, draw.choice(photographs), draw)
            image.save(folder / split / "images" / f"{number:05}.png")
            mask.save(folder / split / "masks" / f"{number:05}.png")


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Make scenes with masks.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/scenes"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    asked = parser.parse_args()
    make(asked.folder, asked.data, SCENES)


if __name__ == "__main__":
    main()
