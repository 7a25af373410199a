"""The images that are looked at: files, folders, PIL's, arrays, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image
from torch import Tensor

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data import as_mode, read_image
from attn_surgery.showing.gates import Numbers
from attn_surgery.showing.transforms import Transform, picture_of


@dataclass(frozen=True, eq=False)
class Given:
    """One image, as a model is given it.

    Attributes:
        name: What it is called.
        label: Its class, where that is known.
        tensor: ``(C, *spatial)``.
        picture: What that shows, ``(H, W, 3)`` of uint8; None if it is no image.
        is_transformed: Whether the transform made the tensor.
    """

    name: str
    label: str | None
    tensor: Tensor
    picture: Numbers | None
    is_transformed: bool = True


def opened(
    images: Any, transform: Transform, mode: str, labels: Sequence[object] | None
) -> list[Given]:
    """Read images, and bring those that are no tensors to what a model takes.

    Args:
        images: As for `attn_surgery.show`.
        transform: For all that are no tensors.
        mode: PIL's mode of what the transform is given.
        labels: One for each image; by default a folder's subfolders name them.

    Raises:
        SurgeryError: There is none, one cannot be read, or labels are fewer or more.
    """
    found = [_given(each, transform, mode) for each in _listed(images)]
    if not found:
        raise SurgeryError("images is empty: give one image at least")
    if labels is None:
        return found
    told = [None if label is None else str(label) for label in labels]
    if len(told) != len(found):
        raise SurgeryError(f"labels has {len(told)}, but there are {len(found)} images")
    return [replace(each, label=label) for each, label in zip(found, told, strict=True)]


@dataclass(frozen=True, eq=False)
class _Source:
    """An image that is not read yet."""

    content: Any
    name: str
    label: str | None = None


def _listed(images: Any) -> Iterator[_Source]:
    if isinstance(images, (str, Path)):
        yield from _at(Path(images))
    elif isinstance(images, Tensor):
        if images.dim() < 3:
            raise SurgeryError(
                f"images has the shape {tuple(images.shape)}: give (N, C, *spatial), as the model "
                "takes them"
            )
        yield from (_Source(each, f"image {i}") for i, each in enumerate(images))
    elif isinstance(images, Image.Image) or hasattr(images, "__array_interface__"):
        yield _Source(images, "image 0")
    elif isinstance(images, Mapping):
        for name, each in images.items():
            content = Path(each) if isinstance(each, str) else each
            yield _Source(content, str(name))
    elif isinstance(images, Iterable):
        for i, each in enumerate(images):
            is_place = isinstance(each, (str, Path))
            yield from _at(Path(each)) if is_place else [_Source(each, f"image {i}")]
    else:
        raise SurgeryError(
            f"images is a {type(images).__name__}: give a tensor (N, C, *spatial), files, a folder "
            "or PIL images"
        )


def _at(path: Path) -> Iterator[_Source]:
    """Yield the image of a file, or those of a folder, with its subfolders' names as labels."""
    if not path.is_dir():
        yield _Source(path, path.name)
        return
    endings = {ending.lower() for ending in torchvision.datasets.folder.IMG_EXTENSIONS}
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in endings)
    if not files:
        raise SurgeryError(
            f"{path} has no images: no file in it ends in one of {', '.join(sorted(endings))}"
        )
    for file in files:
        inside = file.relative_to(path)
        label = inside.parts[0] if len(inside.parts) > 1 else None
        yield _Source(file, inside.as_posix(), label)


def _given(source: _Source, transform: Transform, mode: str) -> Given:
    if isinstance(source.content, Tensor):
        tensor = source.content
        return Given(source.name, source.label, tensor, picture_of(tensor, transform), False)
    image = _read(source, mode)
    try:
        tensor = transform(image)
    except Exception as error:
        raise SurgeryError(f"transform fails for {source.name}: {one_line(error)}") from error
    if not isinstance(tensor, Tensor) or tensor.dim() != 3:
        shape = f" of the shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else ""
        raise SurgeryError(
            f"transform must return a tensor (C, H, W) for an image, not a "
            f"{type(tensor).__name__}{shape}"
        )
    return Given(source.name, source.label, tensor, picture_of(tensor, transform))


def _read(source: _Source, mode: str) -> Image.Image:
    content = source.content
    try:
        if isinstance(content, Path):
            content = read_image(content)
        elif not isinstance(content, Image.Image):
            content = Image.fromarray(content)
        return as_mode(content, mode)
    except Exception as error:
        is_known = isinstance(source.content, (Path, Image.Image))
        name = source.content if isinstance(source.content, Path) else source.name
        wanted = "" if is_known else "; give an array (H, W, 3) of uint8, or a tensor for the model"
        raise SurgeryError(f"cannot read {name} as an image: {one_line(error)}{wanted}") from error
