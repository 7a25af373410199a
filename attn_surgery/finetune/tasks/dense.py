"""Detection and segmentation: targets that belong to places in an image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.data import as_mode, drawn_domain
from attn_surgery.finetune.process import need
from attn_surgery.finetune.recipe import Data, Stage
from attn_surgery.finetune.tasks.classification import Loss, Metrics, Model, total

IGNORED = 255


class Dense:
    """What tasks without a classifier's head share."""

    def collate(self, samples: list[Any]) -> Any:
        """Stack images and targets."""
        return torch.utils.data.default_collate(samples)

    def logits(self, model: Model, images: Any) -> Tensor:
        """Not there: distillation is for classification."""
        raise NotImplementedError


class Segmentation(Dense):
    """One class for each pixel, 255 for none; the score is the mean intersection over union."""

    score = "miou"

    def transforms(self, data: Data, config: dict[str, Any], train: bool) -> Any:
        """Resize, flip and normalize image and mask together."""
        refuse_others("data.train_transform", data.train_transform, ("scale",))
        refuse_others("data.val_transform", data.val_transform)
        size = list(config["input_size"][1:])
        scale = data.train_transform.get("scale", [0.5, 1.0])
        resized = v2.RandomResizedCrop(size, scale, antialias=True) if train else v2.Resize(size)
        chain = v2.Compose([resized, v2.RandomHorizontalFlip(0.5 if train else 0.0)])
        return _ImageAndMask(chain, _normalized(config), data.classes, data.domains)

    def loss(self, stage: Stage, classes: int) -> Loss:
        """Return the cross entropy of the pixels, with half as much of an auxiliary head's."""
        return _pixel_loss

    def check_output(self, model: Model, batch: Any, classes: int) -> None:
        """Refuse an output that is not ``(N, classes, H, W)``.

        Raises:
            SurgeryError: It is not.
        """
        images, masks = batch
        shape = tuple(_outputs(model(images))["out"].shape)
        if shape != (len(images), classes, *masks.shape[1:]):
            raise SurgeryError(
                f"the model's output is {shape} for masks {tuple(masks.shape)} of {classes} "
                "classes; give host.options that fit, as num_classes, or data.classes"
            )

    def measure(
        self, model: Model, batches: Iterable[Any], classes: int, accelerator: Any
    ) -> Metrics:
        """Return the mean IoU over the classes that occur, and the share of pixels told."""
        counts = torch.zeros(classes, classes, dtype=torch.float64)
        for images, masks in batches:
            told = _outputs(model(images.to(accelerator.device)))["out"].argmax(1).cpu()
            known = masks != IGNORED
            pairs = masks[known] * classes + told[known]
            counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        counts = total(counts, accelerator)
        hit, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        seen = union > 0
        return {
            "miou": float((hit[seen] / union[seen]).mean()),
            "pixels": float(hit.sum() / counts.sum().clamp_min(1)),
        }


def refuse_others(name: str, given: Mapping[str, Any], accepted: tuple[str, ...] = ()) -> None:
    """Refuse keywords of a transform that a task does not read.

    Raises:
        SurgeryError: There is one.
    """
    for key in given:
        if key not in accepted:
            known = f"it takes {', '.join(accepted)}" if accepted else "it takes none here"
            raise SurgeryError(f"{name} has no key {key!r}{nearest(key, accepted)}: {known}")


def _outputs(output: Any) -> Mapping[str, Tensor]:
    return output if isinstance(output, Mapping) else {"out": output}


def _pixel_loss(model: Model, batch: Any) -> Tensor:
    images, masks = batch
    outputs = _outputs(model(images))
    losses = {k: F.cross_entropy(v, masks, ignore_index=IGNORED) for k, v in outputs.items()}
    return losses["out"] + 0.5 * sum(each for key, each in losses.items() if key != "out")


class _ImageAndMask:
    def __init__(
        self,
        chain: Callable[..., Any],
        normalized: Callable[[Tensor], Tensor],
        classes: int,
        domains: tuple[str, ...],
    ):
        self.chain, self.normalized = chain, normalized
        self.classes, self.domains = classes, domains

    def __call__(self, image: Any, mask: Any) -> tuple[Tensor, Tensor]:
        pixels = v2.functional.pil_to_tensor(mask).squeeze(0).long()
        told = pixels[pixels != IGNORED]
        if self.classes and told.numel() and told.max() >= self.classes:
            raise SurgeryError(
                f"its mask has the class {told.max()}, but data.classes={self.classes} (they "
                f"begin with 0; {IGNORED} is none)"
            )
        if self.domains:
            image = drawn_domain(as_mode(image, "RGB"), self.domains)
        image, mask = self.chain(_image(image), tv_tensors.Mask(pixels[None]))
        return self.normalized(image), mask.squeeze(0).as_subclass(Tensor)


def _image(image: Any) -> Any:
    return tv_tensors.Image(v2.functional.pil_to_tensor(as_mode(image, "RGB")))


def _normalized(config: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    mean, std = list(config["mean"]), list(config["std"])

    def normalized(image: Tensor) -> Tensor:
        scaled = v2.functional.to_dtype(image, torch.float32, scale=True)
        return v2.functional.normalize(scaled, mean, std).as_subclass(Tensor)

    return normalized


class Detection(Dense):
    """Boxes and their classes; the score is COCO's mean average precision over IoU 0.5 to 0.95."""

    score = "map"

    def transforms(self, data: Data, config: dict[str, Any], train: bool) -> Any:
        """Flip; torchvision's models resize and normalize by themselves.

        Crowds and boxes without an area are not learned; what is measured on stays whole.
        """
        refuse_others("data.train_transform", data.train_transform)
        refuse_others("data.val_transform", data.val_transform)
        if data.image_size:
            raise SurgeryError("data.image_size: a detector has host.options.min_size for that")
        return _ImageAndBoxes(train)

    def collate(self, samples: list[Any]) -> Any:
        """List images and targets."""
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

    def loss(self, stage: Stage, classes: int) -> Loss:
        """Return the sum of the losses that the model gives."""
        return lambda model, batch: sum(model(*batch).values(), torch.zeros(()).to(batch[0][0]))

    def check_output(self, model: Model, batch: Any, classes: int) -> None:
        """Not here: a detector may find nothing in two images."""

    def measure(
        self, model: Model, batches: Iterable[Any], classes: int, accelerator: Any
    ) -> Metrics:
        """Return COCO's mean average precision, and that at IoU 0.5."""
        utils: Any = need("accelerate.utils")
        pairs: list[Any] = []
        for images, targets in batches:
            found = model([image.to(accelerator.device) for image in images])
            kept = ({key: value.cpu() for key, value in each.items()} for each in found)
            pairs += list(zip(targets, kept, strict=True))
        return average_precision(utils.gather_object(pairs))


class _ImageAndBoxes:
    def __init__(self, train: bool):
        self.train = train
        sane = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(labels_getter=_of_each_box)]
        learned = [v2.RandomHorizontalFlip(), *sane] if train else []
        self.chain = v2.Compose([*learned, v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, image: Any, target: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        picture, told = _image(image), _objects(target)
        if self.train:
            told = {key: value[told["iscrowd"] == 0] for key, value in told.items()}
        size = tuple(picture.shape[-2:])
        boxes = tv_tensors.BoundingBoxes(told["boxes"], format="XYXY", canvas_size=size)  # type: ignore[call-overload]
        picture, told = self.chain(picture, {**told, "boxes": boxes})
        return picture.as_subclass(Tensor), {k: v.as_subclass(Tensor) for k, v in told.items()}


def _of_each_box(inputs: tuple[Any, Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
    return tuple(value for key, value in inputs[1].items() if key != "boxes")


def _objects(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what is known of each object; an image without any has no such keys."""
    boxes = torch.as_tensor(target.get("boxes", torch.zeros(0, 4))).as_subclass(Tensor).float()
    nothing = torch.zeros(len(boxes), dtype=torch.long)
    return {
        "boxes": boxes,
        "labels": torch.as_tensor(target.get("labels", nothing)),
        "iscrowd": torch.as_tensor(target.get("iscrowd", nothing)),
        "area": torch.as_tensor(target.get("area", _areas(boxes))),
    }


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def average_precision(pairs: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> Metrics:
    """Return COCO's average precision of pairs of target and prediction, by pycocotools.

    Args:
        pairs: For each image ``boxes`` (x1, y1, x2, y2) and ``labels``; the target may have
            ``iscrowd`` and ``area``, the prediction has ``scores``.

    Raises:
        SurgeryError: pycocotools is not installed.
    """
    coco: Any = need("pycocotools.coco", "pycocotools", "detection")
    evaluation: Any = need("pycocotools.cocoeval", "pycocotools", "detection")
    numbers = range(1, len(pairs) + 1)
    labels = sorted({int(c) for pair in pairs for each in pair for c in each["labels"]})
    truth, found = coco.COCO(), coco.COCO()
    wanted = [box for i, (each, _) in zip(numbers, pairs, strict=True) for box in _boxes(i, each)]
    given = [box for i, (_, each) in zip(numbers, pairs, strict=True) for box in _boxes(i, each)]
    if not wanted:
        raise SurgeryError("the images to measure on hold no object")
    for held, boxes in ((truth, wanted), (found, given)):
        held.dataset = {
            "info": {},
            "images": [{"id": i} for i in numbers],
            "categories": [{"id": c} for c in labels],
            "annotations": [{**box, "id": i} for i, box in enumerate(boxes, 1)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            held.createIndex()
    judge = evaluation.COCOeval(truth, found, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"map": float(judge.stats[0]), "map50": float(judge.stats[1])}


def _boxes(number: int, each: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    boxes, count = each["boxes"], len(each["boxes"])
    columns = {
        "bbox": torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        "category_id": each["labels"],
        "score": each.get("scores", torch.ones(count)),
        "iscrowd": each.get("iscrowd", torch.zeros(count, dtype=torch.long)),
        "area": each.get("area", _areas(boxes)),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"image_id": number, **dict(zip(columns, row, strict=True))} for row in rows]
