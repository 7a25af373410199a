"""Buffers of a host that have to stay as they are, whatever its modules do in training mode."""

from __future__ import annotations

import torch
from torch import nn

from attn_surgery.surgery import inserted


class HeldBuffers:
    """The buffers of a host, but not of its attention, as they are now.

    Frozen norms are not enough: spectral norms iterate, and other people's norms have statistics
    of their own.

    Args:
        model: A host, operated on or not.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> held = HeldBuffers(model)
        >>> _ = model.train()(torch.randn(2, 3, 64, 64))
        >>> held.put_back()
        >>> model.bn1.running_mean.any().item(), model.bn1.num_batches_tracked.item()
        (False, 0)
    """

    def __init__(self, model: nn.Module):
        attention = {each for one in inserted(model).values() for each in one.modules()}
        self.places = [
            (module, name, buffer)
            for module in model.modules()
            if module not in attention
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.values = [buffer.clone() for *_, buffer in self.places]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo whatever happened to them."""
        # All of them: batch norms write to theirs without a new version of the tensor.
        for (module, name, buffer), value in zip(self.places, self.values, strict=True):
            buffer.copy_(value)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
