"""From a recipe's data to images and targets, as their library gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy
import torch
import torchvision
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset
from torch.utils.data import IterableDataset

from attn_surgery.errors import SurgeryError, nearest, one_line
from attn_surgery.finetune.process import need
from attn_surgery.finetune.recipe import Data

_SPLIT_WORDS = ("train", "split", "image_set", "mode")
_SIXTEEN_BITS = 65_535


@dataclass(frozen=True)
class Source:
    """One split.

    Attributes:
        samples: Index -> ``(image, target)``, with PIL images.
        classes: How many classes there are; 0 where the data does not say.
        names: What each sample is called in messages; may be empty.
        class_to_idx: The classes' names and numbers; may be empty.
    """

    samples: Any
    classes: int
    names: Sequence[str] = ()
    class_to_idx: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """Return what a sample is called in messages."""
        return str(self.names[index]) if self.names else f"number {index}"


def open_source(data: Data, *, train: bool) -> Source:
    """Open the split that is learned, or the one that is measured.

    Raises:
        SurgeryError: It is not there, or not as it should be.

    Example:
        >>> source = open_source(Data("digits"), train=True)
        >>> len(source), source.classes, source.samples[0][0].size
        (1348, 10, (8, 8))
    """
    kind, _, name = data.name.partition("/")
    if data.name not in _PLAIN and (kind not in _LIBRARIES or not name):
        raise SurgeryError(
            f"data.name={data.name!r} is not understood{nearest(data.name, _PLAIN)}; give "
            f"{', '.join(map(repr, _PLAIN))}, 'torchvision/CLASS' or 'timm/NAME'"
        )
    split = train or data.held_out > 0
    source = _PLAIN[data.name](data, split) if not name else _LIBRARIES[kind](data, name, split)
    if not len(source):
        raise SurgeryError(f"{data.name} has no image to {'learn from' if train else 'measure on'}")
    if data.held_out:
        source = _held_out(source, data.held_out, train)
    limit = data.limit if train else data.val_limit
    return _limited(source, limit) if 0 < limit < len(source) else source


def _held_out(source: Source, count: int, train: bool) -> Source:
    """Return what is learned of the training images when some are measured on, or those."""
    if count >= len(source):
        raise SurgeryError(f"data.held_out={count} leaves none of {len(source)} training images")
    drawn = _drawn(len(source), 1)
    return _chosen(source, drawn[count:] if train else drawn[:count])


def _limited(source: Source, limit: int) -> Source:
    """Return so many samples, drawn once and for all."""
    return _chosen(source, _drawn(len(source), 0)[:limit])


def _drawn(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu").tolist()


def _chosen(source: Source, numbers: list[int]) -> Source:
    chosen = sorted(numbers)
    names = [source.name(i) for i in chosen] if source.names else []
    return replace(source, samples=torch.utils.data.Subset(source.samples, chosen), names=names)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in one of PIL's modes of 8 bits; PIL alone cuts 16 bits off at 255.

    Raises:
        SurgeryError: It is not known what its pixels mean.

    Example:
        >>> grey = Image.new("I;16", (1, 1), 32_896)
        >>> as_mode(grey, "L").getpixel((0, 0)), grey.convert("L").getpixel((0, 0))
        (128, 255)
    """
    if image.mode.startswith("I") or image.mode == "F":
        pixels = numpy.asarray(image)
        if image.mode == "F" or not 0 <= pixels.min() <= pixels.max() <= _SIXTEEN_BITS:
            raise SurgeryError(f"mode {image.mode}: give images of 8 or 16 bits for each channel")
        image = Image.fromarray((pixels / (_SIXTEEN_BITS / 255)).round().astype("uint8"))
    return image.convert(mode)


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


def _digits(data: Data, train: bool) -> Source:
    """Return scikit-learn's digits: every fourth is measured on."""
    _refuse_options(data)
    digits: Any = need("sklearn.datasets", "scikit-learn").load_digits()
    images = (digits.images * (255 / 16)).round().astype("uint8")
    kept = [i for i in range(len(images)) if (i % 4 != 3) == train]
    return Source(Arrays(images[kept], digits.target[kept]), 10)


# A folder


def _folder(data: Data, train: bool) -> Source:
    """Return an image folder, with the same classes in both splits."""
    _refuse_options(data)
    root = Path(data.root)
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
        samples = torchvision.datasets.ImageFolder(str(folder), loader=_read)
    except FileNotFoundError as error:
        raise SurgeryError(f"a class folder has no image: {one_line(error)}") from error
    names = [path for path, _ in samples.samples]
    return Source(samples, len(samples.classes), names, samples.class_to_idx)


def _read(file: str | Path | IO[bytes]) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image


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
    endings = {ending.lower() for ending in torchvision.datasets.folder.IMG_EXTENSIONS}
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in endings)
    if not paths:
        raise SurgeryError(f"data.unlabelled: {folder} has no images")
    return Source(_Files(paths), 0, [str(path) for path in paths])


class _Files:
    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return _read(self.paths[index]), 0


# Libraries


def _torchvision(data: Data, name: str, train: bool) -> Source:
    """Return a data set of torchvision's, whichever way it says its split."""
    cls: Any = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(cls):
        known = torchvision.datasets.__all__
        raise SurgeryError(f"torchvision has no data set {name!r}{nearest(name, known)}")
    accepted = _keywords(cls)
    given: dict[str, Any] = {"root": data.root} if "root" in accepted else {}
    split = data.train_split if train else data.val_split
    word = next((each for each in _SPLIT_WORDS if each in accepted), None)
    if word is not None:
        given[word] = train if word == "train" else split
    told = any(_filled(v, "a", "") != _filled(v, "b", "") for v in data.options.values())
    if (word is None or word in data.options) and not told:
        raise SurgeryError(
            f"torchvision's {name} would give the same images to learn from and to measure on: "
            "say in data.options which are which, as root = '{root}/{split}'"
        )
    if "download" in accepted:
        given["download"] = data.download
    written = {key: _filled(value, split, data.root) for key, value in data.options.items()}
    try:
        samples = cls(**{**given, **written})
    except Exception as error:
        raise SurgeryError(f"cannot open torchvision's {name}: {one_line(error)}") from error
    if data.task == "detection":
        samples = _with_boxes(samples)
    named = getattr(samples, "class_to_idx", None)
    return Source(
        samples,
        len(getattr(samples, "classes", ())),
        class_to_idx=named if isinstance(named, dict) else {},
    )


def _with_boxes(samples: Any) -> Any:
    """Let a data set give boxes, and whether they are crowds and what they cover, as COCO's do."""
    wrap = torchvision.datasets.wrap_dataset_for_transforms_v2
    try:
        return wrap(samples, target_keys=("boxes", "labels", "iscrowd", "area"))
    except ValueError:
        return wrap(samples, target_keys=("boxes", "labels"))


def _keywords(cls: type) -> set[str]:
    """Return the keywords of a class, with those that it hands on to its bases."""
    found: set[str] = set()
    for each in cls.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values()
        found |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _filled(value: Any, split: str, root: str) -> Any:
    """Fill in ``{split}`` and ``{root}``."""
    if not isinstance(value, str):
        return value
    try:
        return value.format(split=split, root=root)
    except (KeyError, IndexError, ValueError) as error:
        raise SurgeryError(
            f"data.options: {value!r} may hold {{split}} and {{root}} in braces, and nothing else"
        ) from error


def _timm(data: Data, name: str, train: bool) -> Source:
    """Return what timm's ``create_dataset`` makes of a name."""
    split = data.train_split if train else data.val_split
    written = {key: _filled(value, split, data.root) for key, value in data.options.items()}
    try:
        samples: Any = create_dataset(
            name,
            root=data.root or None,
            split=split,
            is_training=train,
            download=data.download,
            batch_size=data.batch_size,
            **written,
        )
    except Exception as error:
        raise SurgeryError(f"timm cannot open {name!r}: {one_line(error)}") from error
    named = getattr(getattr(samples, "reader", None), "class_to_idx", None) or {}
    if isinstance(samples, ImageDataset):
        samples = _Readable(samples.reader)
    elif not hasattr(samples, "__getitem__") or isinstance(samples, IterableDataset):
        samples = _gathered(samples)
    return Source(samples, len(named), class_to_idx=named)


class _Readable:
    """The images of timm's reader; timm's own data set gives the next one for one that is corrupt.

    Args:
        reader: Index -> ``(file, class)``.
    """

    def __init__(self, reader: Any):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, target, *_ = self.reader[index]
        with file:
            return _read(file), target


def _gathered(stream: Any) -> list[tuple[Any, Any]]:
    """Read a stream (WebDataset and its kin) into memory, so that its samples can be counted.

    Raises:
        SurgeryError: Several processes would each get a part of it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise SurgeryError("a stream of samples is read by one process only: unpack it to a folder")
    return [(image, target) for image, target in stream]


_PLAIN: dict[str, Callable[[Data, bool], Source]] = {"digits": _digits, "folder": _folder}
_LIBRARIES: dict[str, Callable[[Data, str, bool], Source]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
