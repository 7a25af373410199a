"""Images that lie in a folder, and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from PIL import Image

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data.source import Source, read_image
from attn_surgery.finetune.process import need
from attn_surgery.finetune.recipe import Data

# Digits


class Arrays:
    """Images and labels that are in memory.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)``, uint8.
        labels: ``(N,)``.
    """

    def __init__(self, images: Any, labels: Any):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def scikit_digits(data: Data, train: bool) -> Source:
    """Return scikit-learn's digits: every fourth is measured on."""
    _refuse_options(data)
    digits: Any = need("sklearn.datasets", "scikit-learn").load_digits()
    images = (digits.images * (255 / 16)).round().astype("uint8")
    kept = [i for i in range(len(images)) if (i % 4 != 3) == train]
    return Source(Arrays(images[kept], digits.target[kept]), 10)


# A folder


def image_folder(data: Data, train: bool) -> Source:
    """Return an image folder: with the same classes in both splits, or what a dense task takes."""
    _refuse_options(data)
    root = Path(data.root)
    if data.task == "restoration":
        return images_below(root / (data.train_split if train else data.val_split))
    if data.task == "segmentation":
        return _images_and_masks(root / (data.train_split if train else data.val_split))
    own, other = data.train_split, data.val_split
    classes = {split: _class_folders(root, split) for split in (own, other)}
    for split, rest in ((own, other), (other, own)):
        if missing := sorted(set(classes[rest]) - set(classes[split])):
            raise SurgeryError(
                f"the class folder {root / split / missing[0]} is missing: {root / rest} has it "
                f"({len(classes[rest])} classes there, {len(classes[split])} here)"
            )
    folder = root / (own if train else other)
    try:
        samples = torchvision.datasets.ImageFolder(str(folder), loader=read_image)
    except FileNotFoundError as error:
        raise SurgeryError(f"a class folder has no image: {one_line(error)}") from error
    names = [path for path, _ in samples.samples]
    return Source(samples, len(samples.classes), names, samples.class_to_idx)


def _refuse_options(data: Data) -> None:
    if data.options:
        raise SurgeryError(
            f"data.options are for the data sets of torchvision and timm; {data.name!r} has none"
        )


def _class_folders(root: Path, split: str) -> list[str]:
    folder = root / split
    if not folder.is_dir():
        raise SurgeryError(f"there is no folder {folder}; data.root and its splits name it")
    if found := sorted(path.name for path in folder.iterdir() if path.is_dir()):
        return found
    raise SurgeryError(f"{folder} has no folders, one for each class")


def open_unlabelled(folder: str) -> Source:
    """Open a folder of images without labels, its subfolders included.

    Raises:
        SurgeryError: There are none.
    """
    try:
        return images_below(Path(folder))
    except SurgeryError as error:
        raise SurgeryError(f"data.unlabelled: {error}") from error


def images_below(folder: Path) -> Source:
    """Return all images of a folder and its subfolders, without labels.

    Raises:
        SurgeryError: There are none.
    """
    endings = {ending.lower() for ending in torchvision.datasets.folder.IMG_EXTENSIONS}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not paths:
        raise SurgeryError(f"{folder} has no images")
    return Source(_Files(paths), 0, [str(path) for path in paths])


def _images_and_masks(folder: Path) -> Source:
    """Return the images of a folder's ``images``, with the masks of the same names in ``masks``.

    Raises:
        SurgeryError: There are none, or an image has no mask.
    """
    images = images_below(folder / "images")
    paths = [Path(name).relative_to(folder / "images") for name in images.names]
    masks = [(folder / "masks" / path).with_suffix(".png") for path in paths]
    if missing := [each for each in masks if not each.is_file()]:
        raise SurgeryError(f"{missing[0]} is missing: each image has a mask, a class a pixel")
    return Source(_Pairs(images.samples, masks), 0, images.names)


class _Pairs:
    def __init__(self, images: _Files, masks: list[Path]):
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        return self.images[index][0], read_image(self.masks[index])


class _Files:
    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index]), 0
