"""Gather photographs that come with packages, for recipes that restore images.

To watch:

- The split is by photograph: no crop that is measured comes from one that is learned.
- Of Debian's ``mate-backgrounds`` and ``plasma-workspace-wallpapers`` the photographs alone are
  taken, not what was drawn; of scikit-image, what comes without a download. What is not installed
  is left out, and the split of the others stays as it is.

``apt-get install mate-backgrounds plasma-workspace-wallpapers``, then
``python examples/photographs.py data/photographs`` writes ``train`` and ``val`` there in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import skimage.data
from PIL import Image

BACKGROUNDS = Path("/usr/share/backgrounds/mate/nature")
WALLPAPERS = Path("/usr/share/wallpapers")
OF_BACKGROUNDS = (
    "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
    "YellowFlower"
).split()
OF_WALLPAPERS = (
    "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path "
    "summer_1am"
).split()
OF_SCIKIT_IMAGE = (
    "astronaut chelsea coffee hubble_deep_field immunohistochemistry retina rocket"
).split()
NAMES = sorted([*OF_BACKGROUNDS, *OF_WALLPAPERS, *OF_SCIKIT_IMAGE], key=str.lower)
SIDE = 512
"""Of the shorter side, in pixels: larger photographs are scaled down to it."""


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield those that are installed, by name."""
    for name in OF_SCIKIT_IMAGE:
        yield name, Image.fromarray(getattr(skimage.data, name)())
    places = [(name, BACKGROUNDS.glob(f"{name}.*")) for name in OF_BACKGROUNDS]
    places += [(name, (WALLPAPERS / name).glob("contents/images/*")) for name in OF_WALLPAPERS]
    for name, files in places:
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
        if largest is not None:
            yield name, Image.open(largest)


def split_of(name: str) -> str:
    """Return where a photograph goes: every fourth is measured on."""
    return "val" if NAMES.index(name) % 4 == 3 else "train"


def gather(folder: Path) -> dict[str, list[str]]:
    """Write the photographs as PNG files below a folder; return the names of each split."""
    written: dict[str, list[str]] = {"train": [], "val": []}
    for name, image in photographs():
        split = split_of(name)
        (folder / split).mkdir(parents=True, exist_ok=True)
        scale = SIDE / min(image.size)
        size = [max(SIDE, round(scale * side)) for side in image.size]
        small = image.convert("RGB")
        if scale < 1:
            small = small.resize(size, Image.Resampling.LANCZOS)
        small.save(folder / split / f"{name}.png")
        written[split].append(name)
    return written


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Gather photographs that come with packages.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/photographs"))
    for split, names in gather(parser.parse_args().folder).items():
        print(f"{split}: {len(names)} photographs")


if __name__ == "__main__":
    main()
