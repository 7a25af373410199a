"""What a recipe's data comes to: images to learn from, and images to measure on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.data.batches import Place, Prepared
from attn_surgery.finetune.data.datasets import open_source
from attn_surgery.finetune.data.folders import open_unlabelled
from attn_surgery.finetune.data.source import Source
from attn_surgery.finetune.data.transforms import image_config
from attn_surgery.finetune.data.views import Views, views_of
from attn_surgery.finetune.recipe import Data

Split = Prepared | Views


class InAllDomains(Dataset[Any]):
    """A split in each domain: all of an image's, then the next image's.

    Args:
        domains: The same images in each.
    """

    def __init__(self, domains: Mapping[str, Split]):
        self.domains = list(domains.values())
        self.source = self.domains[0].source

    def __len__(self) -> int:
        return len(self.domains) * len(self.domains[0])

    def __getitem__(self, place: Place) -> tuple[Any, Any]:
        index = place[0] // len(self.domains)
        return self.domains[place[0] % len(self.domains)][index, index]


@dataclass(frozen=True)
class Splits:
    """What a recipe's data comes to.

    Attributes:
        train: What is learned after the surgery.
        val: What is measured.
        classes: How many classes there are.
        input_size: ``(C, H, W)`` of an image.
        unlabelled: Images without labels, or None.
        pretraining: What is learned before the surgery.
        domains: What is measured in each domain; empty where there are none.
        told: What decides the views of images, as plain data.
    """

    train: Split
    val: Split | InAllDomains
    classes: int
    input_size: tuple[int, int, int]
    unlabelled: Prepared | None
    pretraining: Split
    domains: Mapping[str, Split] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    def with_views(self, views: int, folder: Path) -> Splits:
        """Return the same with so many views of an image, which are kept in a folder.

        Raises:
            SurgeryError: They cannot be.
        """

        def kept(split: Any, name: str, *seeds: int | None) -> Views:
            return views_of(split, seeds, {**self.told, "of": name}, folder)

        train = kept(self.train, "train", *range(views))
        is_one = self.pretraining is self.train
        before = train if is_one else kept(self.pretraining, "pretraining", *range(views))
        domains = {name: kept(each, f"val {name}", None) for name, each in self.domains.items()}
        val = InAllDomains(domains) if domains else kept(self.val, "val", None)
        return dataclasses.replace(self, train=train, val=val, pretraining=before, domains=domains)


Transforms = Callable[[Data, dict[str, Any], bool], Callable[[Any, Any], tuple[Any, Any]]]


def open_data(data: Data, model: nn.Module | None, transforms: Transforms) -> Splits:
    """Open both splits.

    Args:
        data: What the recipe says.
        model: The host, which says what images it wants where the recipe does not.
        transforms: From the recipe, the configuration and whether it is for training to a
            transform of image and target.

    Raises:
        SurgeryError: Something is not there, or not as it should be.
    """
    config = image_config(data, model)
    sources = {train: open_source(data, train=train) for train in (True, False)}

    def prepared(train: bool, *domains: str) -> Prepared:
        own = dataclasses.replace(data, domains=domains)
        return Prepared(sources[train], _transform(transforms, own, config, train))

    train = prepared(True, *data.domains)
    domains = {name: prepared(False, name) for name in data.domains}
    unlabelled = None
    if data.unlabelled:
        source = open_unlabelled(data.unlabelled)
        unlabelled = Prepared(source, _transform(transforms, data, config, True))
    return Splits(
        train,
        InAllDomains(domains) if domains else prepared(False),
        _classes(data, sources),
        tuple(config["input_size"]),
        unlabelled,
        prepared(True) if domains and data.task != "restoration" else train,
        domains,
        {"data": data.to_dict(), "config": config},
    )


def _classes(data: Data, sources: Mapping[bool, Source]) -> int:
    """Return how many classes there are, once it is sure that both splits mean the same by them."""
    learned, measured = (sources[train].class_to_idx for train in (True, False))
    if learned and measured and learned != measured:
        name = next(iter(dict(set(learned.items()) ^ set(measured.items()))))
        raise SurgeryError(
            f"{data.name}: class {name!r} is number {learned.get(name)} of {data.train_split!r} "
            f"and {measured.get(name)} of {data.val_split!r}"
        )
    known = sources[True].classes
    if data.task == "restoration":
        return 0
    if not data.classes and not known:
        raise SurgeryError(f"{data.name} does not say how many classes it has: give data.classes")
    if data.classes and data.classes < known and data.task == "classification":
        raise SurgeryError(f"data.classes={data.classes}, but {data.name} has {known} classes")
    return data.classes or known


def _transform(
    transforms: Transforms, data: Data, config: dict[str, Any], train: bool
) -> Callable[[Any, Any], tuple[Any, Any]]:
    try:
        return transforms(data, config, train)
    except SurgeryError:
        raise
    except Exception as error:  # timm's and torchvision's of what they are given
        name = "data.train_transform" if train else "data.val_transform"
        raise SurgeryError(f"{name}: {one_line(error)}") from error
