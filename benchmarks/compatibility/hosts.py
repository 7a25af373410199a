"""The hosts: one small member of each family, freshly initialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import attn_surgery

STEPS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""How far the parameters of attention may be moved from their start."""
SEEN, SANE = 5e-4, 0.3
"""How much of an output attention changes: enough to be seen, and not so much that rounding grows
in the host, as it does where maps do not keep to the size that its norms bring them to."""


@dataclass(frozen=True)
class Host:
    """One of a family.

    Attributes:
        build: Makes it.
        shape: Of one input, ``(C, *spatial)``; twice the size has to fit, too, where any does.
        biases: Whether it needs its biases, as a host does that multiplies two maps.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    biases: bool = False

    def made(self) -> nn.Module:
        """Return it in evaluation mode, the same each time, so that all that it does is seen.

        Libraries start last norms and layer scales at nothing, or next to it; and in a deep host
        that was not trained, biases can be all that is left at its end.
        """
        torch.manual_seed(0)
        model = self.build().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data *= self.biases
            elif parameter.numel() == max(parameter.shape, default=1):
                nn.init.uniform_(parameter, 0.5, 1.5)
        return model

    @torch.no_grad()
    def operated(self, attention: str) -> nn.Module:
        """Return it with attention that does something at every site."""
        x = self.inputs()
        before = self.made()(x)
        changes: list[float] = []
        for step in STEPS:
            model = self._operated(attention, step)
            changes.append(float((model(x) - before).norm() / before.norm()))
            if SEEN <= changes[-1] <= SANE:
                return model
        raise ValueError(f"{attention} changes {changes} of the output, by steps {STEPS}")

    def _operated(self, attention: str, step: float) -> nn.Module:
        model = attn_surgery.apply(self.made(), attention, existing="stack")
        generator = torch.Generator().manual_seed(1)
        for each in attn_surgery.inserted(model).values():
            for parameter in each.parameters():
                parameter += step * torch.randn(parameter.shape, generator=generator)
        return model

    def inputs(self, batch: int = 2, scale: int = 1) -> Tensor:
        """Return images, or whatever it takes, the same each time."""
        channels, *spatial = self.shape
        sizes = [scale * size for size in spatial]
        return torch.randn(batch, channels, *sizes, generator=torch.Generator().manual_seed(2))


class Features(nn.Module):
    """The last map of a model that returns several values."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Any = self.model(x)
        return found.last_hidden_state if hasattr(found, "last_hidden_state") else found["out"]


def _transformers(name: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return Features(getattr(transformers, f"{name}Model")(config))


def _segmentation() -> nn.Module:
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    return Features(build(weights=None, weights_backbone=None))


TIMM = (
    "resnet18 resnetv2_50 resnext26ts seresnet33ts skresnet18 resnest14d res2net50_14w_8s "
    "gernet_s nf_regnet_b0 regnetx_002 regnety_002 dla34 hrnet_w18_small cs3darknet_s "
    "xception41 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mnasnet_small "
    "fbnetc_100 spnasnet_100 hardcorenas_a mixnet_s tinynet_e efficientnet_lite0 "
    "efficientnet_b0 ghostnetv2_100 mobilevit_xxs convnext_atto "
    "convnextv2_atto edgenext_xx_small fastvit_t8 efficientvit_b0 starnet_s1 "
    "inception_next_atto efficientformerv2_s0 ecaresnet26t gcresnet33ts convformer_s18"
).split()
_SIZES = {"efficientformerv2_s0": 224}
_MULTIPLIED = {"starnet_s1"}

HOSTS: dict[str, Host] = {
    **{
        f"timm/{name}": Host(
            partial(timm.create_model, name),
            (3, *[_SIZES.get(name, 64)] * 2),
            biases=name in _MULTIPLIED,
        )
        for name in TIMM
    },
    "torchvision/mobilenet_v2": Host(torchvision.models.mobilenet_v2),
    "torchvision/quantization/resnet18": Host(torchvision.models.quantization.resnet18),
    "torchvision/lraspp_mobilenet_v3_large": Host(_segmentation),
    "torchvision/r3d_18": Host(torchvision.models.video.r3d_18, (3, 8, 32, 32)),
    "transformers/ResNet": Host(
        partial(_transformers, "ResNet", depths=[1, 1, 1, 1], layer_type="basic")
    ),
    "transformers/RegNet": Host(
        partial(
            _transformers,
            "RegNet",
            hidden_sizes=[32, 64, 96, 128],
            depths=[1, 1, 2, 1],
            groups_width=16,
        )
    ),
}
