"""Whole networks around the blocks: what they take, in what order, and what they do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from generated_layers import CONV, INSTANCE_NORM, Marked, Shape, conv
from generated_maps import Shifted
from torch import nn


class Stemmed(nn.Module):
    """A stem, then parts."""

    def __init__(self, dims: int, channels: int, parts: list[nn.Module]):
        super().__init__()
        self.stem = nn.Sequential(CONV[dims](3, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.parts = nn.Sequential(*parts)


class Net(Stemmed):
    def forward(self, x: Any) -> Any:
        return self.parts(self.stem(x))


class ListNet(Stemmed):
    """Takes a list of images of any length, as detection models do, and returns a dict."""

    def forward(self, images: Any) -> Any:
        features = self.stem(torch.stack([image for image in images if image.dim() > 0]))
        return {"features": self.parts(features), "count": len(images)}


class TwoInputs(Stemmed):
    """Adds what it made of one argument to another argument: no site."""

    def forward(self, x: Any, other: Any) -> Any:
        return self.parts(self.stem(x)) + other


# Inputs that may be left out, as in transformers


class Embedder(nn.Module):
    """Looks at its input."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.channels = 3
        self.stem = CONV[dims](3, channels, 3, padding=1)

    def forward(self, pixels: Any) -> Any:
        channels = pixels.shape[1]
        if channels != self.channels:
            raise ValueError(f"{channels} channels, not {self.channels}")
        return self.stem(pixels)


class Embedding(nn.Module):
    """An embedder, then parts."""

    def __init__(self, dims: int, channels: int, parts: list[nn.Module]):
        super().__init__()
        self.embedder = Embedder(dims, channels)
        self.parts = nn.Sequential(*parts)


class OptionalInput(Embedding):
    def forward(self, pixels: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        features = self.parts(self.embedder(pixels))
        loss = None
        if labels is not None:
            loss = F.mse_loss(features, labels)
        return {"features": features, "loss": loss}


class OptionalPair(Embedding):
    """The picture is the second input."""

    def forward(self, tokens: Any = None, pixels: Any = None) -> Any:
        if pixels is None:
            raise ValueError("You have to specify pixels")
        bias = 0 if tokens is None else tokens.float().mean()
        return self.parts(self.embedder(pixels)) + bias


class Body(Embedding):
    """Runs the parts one by one and keeps what is between them, if that is asked for."""

    def forward(
        self, pixels: Any = None, hidden: bool | None = None, as_dict: bool | None = None
    ) -> Any:
        hidden = hidden if hidden is not None else False
        as_dict = as_dict if as_dict is not None else True
        between: Any = () if hidden else None
        x = self.embedder(pixels)
        for part in self.parts:
            if hidden:
                between = (*between, x)
            x = part(x)
        return {"features": x, "between": between} if as_dict else (x, between)


class Wrapped(nn.Module):
    """A body with keywords for everything, and a head."""

    def __init__(self, dims: int, channels: int, parts: list[nn.Module]):
        super().__init__()
        self.body = Body(dims, channels, parts)

    def forward(
        self,
        pixels: Any = None,
        labels: Any = None,
        hidden: bool | None = None,
        as_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        as_dict = as_dict if as_dict is not None else True
        out = self.body(pixels, hidden=hidden, as_dict=as_dict)
        features = out["features"] if as_dict else out[0]
        loss = None
        if labels is not None:
            loss = F.mse_loss(features, labels)
        if not as_dict:
            return (features,) if loss is None else (loss, features)
        return {"features": features, "loss": loss, "between": out["between"]}


# A vector beside the picture, which the blocks take


class Conditioned(Stemmed):
    """Hands the same vector to every block that takes one."""

    def __init__(self, dims: int, channels: int, parts: list[nn.Module]):
        super().__init__(dims, channels, parts)
        self.time = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))

    def forward(self, x: Any, t: Any) -> Any:
        x, t = self.stem(x), self.time(t)
        for part in self.parts:
            x = part(x, t) if isinstance(part, CONDITIONED_CLASSES) else part(x)
        return x


class GrownShifted(Shifted):
    """guided-diffusion's way of making a map of the vector, which counts dims as it goes."""

    def forward(self, x: Any, t: Any) -> Any:
        h = self.conv1(F.silu(self.norm1(x)))
        shift = self.emb(F.silu(t)).type(h.dtype)
        while len(shift.shape) < len(h.shape):
            shift = shift[..., None]
        f = self.conv2(F.silu(self.norm2(h + shift)))
        return x + self.ends_here(f, "conv2", doubtful=True)


class ScaledShifted(Marked):
    """A scale and a shift of the norm, out of one Linear."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.conv1, self.norm = conv(shape), nn.GroupNorm(2, shape.outward)
        self.emb = nn.Linear(4, 2 * shape.outward)
        self.conv2 = conv(shape)
        self.as_map = (..., *[None] * shape.dims)

    def forward(self, x: Any, t: Any) -> Any:
        scale, shift = self.emb(F.silu(t))[self.as_map].chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + scale) + shift
        return self.ends_here(self.conv2(F.silu(h)), "conv2") + x


class ConditionalNorm(nn.Module):
    """BigGAN's: gain and bias are made of the class's vector."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm = INSTANCE_NORM[shape.dims](shape.outward)
        self.gain, self.bias = nn.Linear(4, shape.outward), nn.Linear(4, shape.outward)
        self.as_map = (-1, shape.outward, *[1] * shape.dims)

    def forward(self, x: Any, y: Any) -> Any:
        gain = (1 + self.gain(y)).view(self.as_map)
        return self.norm(x) * gain + self.bias(y).view(self.as_map)


class ConditionallyNormed(Marked):
    def __init__(self, shape: Shape):
        super().__init__()
        self.norm1, self.conv1 = ConditionalNorm(shape), conv(shape)
        self.norm2, self.conv2 = ConditionalNorm(shape), conv(shape)

    def forward(self, x: Any, y: Any) -> Any:
        h = self.conv1(F.relu(self.norm1(x, y)))
        return x + self.ends_here(self.conv2(F.relu(self.norm2(h, y))), "conv2")


class Styled(Marked):
    """Ends in a conditional norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.conv1, self.norm1 = conv(shape), ConditionalNorm(shape)
        self.conv2, self.norm2 = conv(shape), ConditionalNorm(shape)

    def forward(self, x: Any, y: Any) -> Any:
        h = F.relu(self.norm1(self.conv1(x), y))
        return x + self.ends_here(self.norm2(self.conv2(h), y), "norm2")


class Concatenated(Marked):
    """The vector as more channels of the map."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.conv1 = conv(shape, inward=shape.outward + 4)
        self.conv2 = conv(shape)
        self.as_map = (..., *[None] * shape.dims)

    def forward(self, x: Any, t: Any) -> Any:
        plane = t[self.as_map] * torch.ones_like(x[:, :1])
        h = F.relu(self.conv1(torch.cat([x, plane], 1)))
        return x + self.ends_here(self.conv2(h), "conv2")


class AddsVector(nn.Module):
    """Nothing but the vector, added: no site."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.emb = nn.Linear(4, shape.outward)
        self.conv = conv(shape)
        self.as_map = (..., *[None] * shape.dims)

    def forward(self, x: Any, t: Any) -> Any:
        return F.relu(self.conv(x) + self.emb(t)[self.as_map])


CONDITIONED: dict[str, Callable[[Shape], nn.Module]] = {
    "shifted": Shifted,
    "grown, shifted": GrownShifted,
    "scaled, shifted": ScaledShifted,
    "conditionally normed": ConditionallyNormed,
    "styled": Styled,
    "concatenated": Concatenated,
    "adds vector": AddsVector,
}
"""Blocks, and a decoy, that take a vector besides the map."""
CONDITIONED_CLASSES = (
    Shifted,
    ScaledShifted,
    ConditionallyNormed,
    Styled,
    Concatenated,
    AddsVector,
)

HOSTS: dict[str, Callable[[int, int, list[nn.Module]], nn.Module]] = {
    "net": Net,
    "list net": ListNet,
    "two inputs": TwoInputs,
    "optional input": OptionalInput,
    "optional pair": OptionalPair,
    "wrapped": Wrapped,
    "conditioned": Conditioned,
}
