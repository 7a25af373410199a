"""Restoration: an image as it was, from what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import as_mode, drawn_domain
from attn_surgery.finetune.recipe import Data, Stage
from attn_surgery.finetune.tasks.classification import Loss, Metrics, Model, total
from attn_surgery.finetune.tasks.dense import Dense, refuse_others


class Restoration(Dense):
    """The image itself; the score is the peak signal-to-noise ratio in decibels, image by image."""

    score = "psnr"

    def transforms(self, data: Data, config: dict[str, Any], train: bool) -> Any:
        """Cut a square out of an image, and bring it to a domain; pixels go from 0 to 1."""
        refuse_others("data.train_transform", data.train_transform, ("hflip", "scale"))
        refuse_others("data.val_transform", data.val_transform, ("scale",))
        flip = data.train_transform.get("hflip", 0.5) if train else 0.0
        scale = (data.train_transform if train else data.val_transform).get("scale")
        size = list(config["input_size"][1:])
        cut = v2.RandomCrop(size, pad_if_needed=True)
        if scale is not None:
            cut = v2.RandomResizedCrop(size, scale, ratio=(1.0, 1.0), antialias=True)
        chain = v2.Compose([cut, v2.RandomHorizontalFlip(flip)])
        return _Damaged(chain, "L" if data.channels == 1 else "RGB", data.domains)

    def loss(self, stage: Stage, classes: int) -> Loss:
        """Return the mean absolute difference (as Lim et al. 2017, arXiv:1707.02921)."""
        return lambda model, batch: F.l1_loss(model(batch[0]), batch[1])

    def check_output(self, model: Model, batch: Any, classes: int) -> None:
        """Refuse an output that is no image of the same size.

        Raises:
            SurgeryError: It is none.
        """
        given, wanted = batch
        shape = tuple(getattr(model(given), "shape", ()))
        if shape != tuple(wanted.shape):
            raise SurgeryError(
                f"the model's output is {shape} for images {tuple(wanted.shape)}; restoration "
                "takes a model that returns an image as large as the one it is given"
            )

    def measure(
        self, model: nn.Module, batches: Iterable[Any], classes: int, accelerator: Any
    ) -> Metrics:
        """Return the mean ratio, of outputs cut off at black and white, and the mean loss."""
        sums = torch.zeros(3, dtype=torch.float64)
        for given, wanted in batches:
            given, wanted = given.to(accelerator.device), wanted.to(accelerator.device)
            found = model(given).float()
            ratios = peak_signal_to_noise(found.clamp(0, 1), wanted)
            lost = (found - wanted).abs().flatten(1).mean(1)
            count = ratios.new_tensor(len(wanted))
            sums += torch.stack([ratios.sum(), lost.sum(), count]).cpu().double()
        ratios, lost, count = total(sums, accelerator).tolist()
        return {"psnr": ratios / count, "loss": lost / count, "images": count}


def peak_signal_to_noise(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the ratio of each image in decibels, ``(N, C, H, W)`` -> ``(N,)``; white is 1.

    Example:
        >>> black = torch.zeros(1, 3, 8, 8)
        >>> round(peak_signal_to_noise(black + 0.1, black).item(), 3)
        20.0
    """
    error = (found - wanted).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


@dataclass(frozen=True)
class _Damaged:
    """From an image to a pair: as it became, as it was.

    Attributes:
        chain: From a PIL image to a part of it.
        mode: PIL's mode.
        domains: What may become of it.
    """

    chain: Callable[[Image.Image], Image.Image]
    mode: str
    domains: tuple[str, ...]

    def __call__(self, image: Any, target: Any) -> tuple[Tensor, Tensor]:
        whole = self.chain(as_mode(image, self.mode))
        return _pixels(drawn_domain(whole, self.domains)), _pixels(whole)


def _pixels(image: Image.Image) -> Tensor:
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
