"""A forward that asks ``is`` of what it computes, or is given, asks it after surgery, too."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosts import Branch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host import inspect_forward

IS_TESTED = "tests what one of its values is"


class OfAnItem(Branch):
    def forward(self, x: Tensor, more: Any) -> Tensor:
        y = self.branch(x)
        return x + (y if more["mask"] is None else y * more["mask"])


class OfAnElement(Branch):
    def forward(self, x: Tensor, masks: Any) -> Tensor:
        y = self.branch(x)
        if masks[0] is not None:
            y = y * masks[0]
        return x + y


class InALambda(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        masked: Callable[[Tensor], Tensor] = lambda t: t if mask is None else t * mask  # noqa: E731
        return x + masked(self.branch(x))


class InAComprehension(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.branch(x)
        (z,) = [y if mask is None else each * mask for each in [y]]
        return x + z


class OfAMethod(Branch):
    def of(self, mask: Any) -> Any:
        return mask

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.branch(x)
        return x + (y if self.of(mask) is None else y * mask)


class Masked:
    def __init__(self, x: Tensor, mask: Any) -> None:
        self.x, self.mask = x, mask

    def plus(self, y: Tensor) -> Tensor:
        return self.x + (y if self.mask is None else y * self.mask)


class InAHelper(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        return Masked(x, mask).plus(self.branch(x))


class OfEither(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.branch(x)
        return x + (y if (mask if self.training is False else self.a) is None else y * mask)


class UnderItsName(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y, itself = self.branch(x), self
        self = mask  # pyright: ignore[reportAssignmentType]
        return x + (y if self is None else y * self) * (itself is not None)


class ByAnOperator(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.branch(x)
        if operator.is_not(mask, None):
            y = y * mask
        return x + y


class ByAMethodOfNone(Branch):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.branch(x)
        masked: dict[bool, Callable[[], Tensor]] = {True: lambda: y}
        return x + masked.get(None.__eq__(mask), lambda: y * mask)()


class OfADtype(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if x.dtype is torch.float64 else 1.0)


class OfAWeightsDtype(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if self.a.weight.dtype is torch.float64 else 1.0)


class OfAProperty(Branch):
    @property
    def dtype(self) -> torch.dtype:
        return self.a.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if self.dtype is torch.float64 else 1.0)


class OfWhatACallGives(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if x.is_contiguous() is True else 1.0)


X, MASK = torch.randn(2, 8, 8, 8), torch.rand(2, 1, 8, 8)
MASKED = ((X, MASK), (X, None), (X,))
CALLS: dict[type[Branch], tuple[tuple[Any, ...], ...]] = {
    OfAnItem: ((X, {"mask": MASK}), (X, {"mask": None})),
    OfAnElement: ((X, (MASK,)), (X, (None,))),
    InALambda: MASKED,
    InAComprehension: MASKED,
    OfAMethod: MASKED,
    InAHelper: MASKED,
    OfEither: MASKED,
    UnderItsName: MASKED,
    ByAnOperator: MASKED,
    ByAMethodOfNone: MASKED,
    OfADtype: ((X,), (X.double(),)),
    OfAWeightsDtype: ((X,), (X.double(),)),
    OfAProperty: ((X,), (X.double(),)),
    OfWhatACallGives: ((X,),),
}


@pytest.mark.parametrize("kind", CALLS)
def test_every_answer_is_given(kind):
    host = kind().eval()
    operated = attn_surgery.apply(copy.deepcopy(host), "se")
    for given in CALLS[kind]:
        dtype = given[0].dtype
        assert torch.equal(operated.to(dtype)(*given), host.to(dtype)(*given))


class OfItsOwn(Branch):
    """Asks only of what it holds itself."""

    slope: float | None = 0.5
    gamma: Any

    def __init__(self) -> None:
        super().__init__()
        self.pool: nn.Module | None = None
        self.register_parameter("gamma", None)

    def scaled(this, x: Tensor) -> Tensor:  # noqa: N805 - any name will do
        return x if this.gamma is None else x * this.gamma

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) if self.a.bias is not None else x
        if self.pool is not None:
            y = self.pool(y)
        ways = [each for each in (y,) if self.slope is not None]
        return x + self.scaled(ways[0]) if self.__class__ is not Branch else x


def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def called(self: Branch, x: Tensor) -> Tensor:
        return forward(self, x)

    return called


class OfItsOwnDecorated(Branch):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return x + (x if self.norm is None else self.branch(x))


class OfItsOwnByClass(OfItsOwnDecorated):
    def forward(self, x: Tensor) -> Tensor:
        return OfItsOwnDecorated.forward(self, x)


@pytest.mark.parametrize("kind", [OfItsOwn, OfItsOwnDecorated, OfItsOwnByClass])
def test_what_it_holds_is_no_obstacle(kind):
    assert not inspect_forward(kind()).obstacles


def test_what_it_holds_is_rewritten():
    assert not inspect_forward(OfItsOwn()).obstacles
    assert attn_surgery.plan(OfItsOwn(), "se").sites[0].method == "rewrite"


def test_only_its_own_is_held():
    assert IS_TESTED in inspect_forward(OfAProperty()).obstacles
    assert IS_TESTED in inspect_forward(InAHelper()).obstacles
