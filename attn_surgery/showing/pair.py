"""An operated model and its host, side by side: copies, run on the same images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import floating_dtype, undisturbed_randomness, unwrapped
from attn_surgery.showing.gates import Gate, metered
from attn_surgery.showing.images import Given
from attn_surgery.showing.predictions import described, logits_of
from attn_surgery.surgery import inserted, remove


@dataclass(frozen=True, eq=False)
class Run:
    """What came of one image.

    Attributes:
        image: As both models were given it, ``(1, C, *spatial)``.
        host: The host's logits, ``(classes,)``; None where it returns none.
        operated: The operated model's.
        gates: The path of each attention that ran -> its gate.
        returned: In words what the operated model returned.
    """

    image: Tensor
    host: Tensor | None
    operated: Tensor | None
    gates: dict[str, Gate]
    returned: str


class Pair:
    """Copies of an operated model and of its host, to be run and looked into.

    Args:
        model: A host that was operated on, perhaps wrapped or compiled since.
        host: The model beside it; by default the first without its attention.

    Raises:
        SurgeryError: There is no attention, or one of them is no model with numbers.
    """

    def __init__(self, model: nn.Module, host: nn.Module | None):
        self.operated = _copied("model", model)
        self.attentions = inserted(self.operated)
        if not self.attentions:
            raise SurgeryError(
                f"nothing is inserted in {type(self.operated).__name__}: call attn_surgery.apply "
                "before, or attn_surgery.load with the file of an attention"
            )
        self.device = _device(self.operated)
        beside = copy.deepcopy(self.operated) if host is None else _copied("host", host)
        self.host = remove(beside) if host is None else beside.to(self.device)

    def run(self, given: Given) -> Run:
        """Run both models on one image.

        Raises:
            SurgeryError: One of them fails.
        """
        kept = floating_dtype(self.operated) if given.tensor.is_floating_point() else None
        image = given.tensor.detach().to(device=self.device, dtype=kept)[None]
        with metered(self.attentions) as gates:
            operated = self._ran("model", self.operated, image, given.name)
        beside = self._ran("host", self.host, image, given.name)
        logits = [logits_of(each) for each in (beside, operated)]
        host, own = (None if each is None else each[0].float().cpu() for each in logits)
        return Run(image, host, own, gates(), described(operated))

    def differing(self) -> list[str]:
        """Return the names of the host's tensors that are not the same in the operated model."""
        host = self.host.state_dict()
        mine = remove(copy.deepcopy(self.operated)).state_dict()
        return [
            key for key, tensor in mine.items() if key not in host or not _same(tensor, host[key])
        ]

    def _ran(self, role: str, model: nn.Module, image: Tensor, name: str) -> Any:
        try:
            with undisturbed_randomness(self.device, seed=0):
                return model(image)
        except Exception as error:
            raise SurgeryError(
                f"the {role} fails for {name}, which it was given as {tuple(image.shape)}: "
                f"{one_line(error)}; transform= makes of an image what the model takes"
            ) from error


def _copied(role: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"{role} must be a torch.nn.Module, not a {type(model).__name__}")
    if any(each.is_meta for each in model.parameters()):
        raise SurgeryError(f"{role} is on the meta device, and has no numbers: load its weights")
    return copy.deepcopy(unwrapped(model)).eval().requires_grad_(False)


def _device(model: nn.Module) -> torch.device:
    tensors = (each for each in (*model.parameters(), *model.buffers()))
    return next((each.device for each in tensors), torch.device("cpu"))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.device, one.dtype))
