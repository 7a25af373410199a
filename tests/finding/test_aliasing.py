"""A value whose memory is changed before it is used: attention reads it then, or is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import attn_surgery

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Parts of a split may be changed in place only without."""
    with torch.no_grad():
        yield


ALIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "identity": nn.Identity(),
    "dropout": nn.Dropout(0.2),
    "slice": lambda x: x[..., :],
    "view": lambda x: x.view(x.shape),
    "transposed": lambda x: x.transpose(2, 3).transpose(2, 3),
    "contiguous": lambda x: x.contiguous(),
    "detached": lambda x: x.detach(),
    "expanded": lambda x: x.expand(-1, -1, -1, -1),
    "converted": lambda x: x.to(torch.float32),
    "flat": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "part of a stack": lambda x: torch.stack([x, x])[0],
}


class Block(nn.Module):
    """Its branch begins with an activation that changes the block's input."""

    def __init__(self, alias: str):
        super().__init__()
        first, last = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(nn.ReLU(inplace=True), first, nn.ReLU(inplace=True), last)
        self.short = ALIASES[alias]


class ShortFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.short(x), self.body(x))


class ShortLast(Block):
    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        return f + self.short(x)


class ByStatement(Block):
    def forward(self, x: Tensor) -> Tensor:
        identity = self.short(x)
        f = self.body(x)
        f += identity
        return f


class Asks(ShortFirst):
    """Cannot be rewritten."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError("too bright")
        return torch.add(self.short(x), self.body(x))


class EndIsPart(Block):
    """The branch ends in a view of what is changed before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.clone())
        f = self.short(y)
        y.mul_(2)
        return x + f


class TwoParts(Block):
    """What is changed is the other half."""

    def __init__(self, alias: str):
        super().__init__(alias)
        self.wide = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.wide(x).chunk(2, 1)
        f = self.body(a.clone())
        b.relu_()
        return a + f + 0 * b


class Added(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class ByChild(Block):
    def __init__(self, alias: str):
        super().__init__(alias)
        self.add = Added()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.short(x), self.body(x))


BLOCKS = [ShortFirst, ShortLast, ByStatement, Asks, EndIsPart, TwoParts, ByChild]
POSITIONS = ("standard", "pre", "mid", "identity", "post")


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_is_disturbed(block: type[Block], alias: str) -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for position, training in itertools.product(POSITIONS, (False, True)):
        host = nn.Sequential(nn.Conv2d(4, 4, 1), block(alias)).train(training)
        torch.manual_seed(1)
        expected = host(x)
        if not attn_surgery.plan(host, "se", position=position).sites:
            continue
        attn_surgery.apply(host, "se", position=position)
        torch.manual_seed(1)
        assert torch.equal(host(x), expected), (position, training)
        torch.manual_seed(1)
        assert torch.equal(attn_surgery.remove(host)(x), expected), (position, training)


@pytest.mark.parametrize("alias", sorted(ALIASES.keys() - {"itself", "part of a stack"}))
@pytest.mark.parametrize("block", [ShortFirst, ByStatement])
def test_attention_reads_the_shortcut_when_it_is_added(block: type[Block], alias: str) -> None:
    x = torch.randn(2, 4, 8, 8)
    host = nn.Sequential(nn.Conv2d(4, 4, 1), block(alias)).eval()
    (site,) = attn_surgery.plan(host, "se", position="identity").sites
    assert site.method == "rewrite"
    seen: list[Tensor] = []
    attn_surgery.apply(host, "se", position="identity")
    (attention,) = attn_surgery.inserted(host).values()
    attention.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    host(x)
    assert torch.equal(seen[0], torch.relu(host[0](x)))


def test_where_no_code_can_read_it_late_it_is_refused() -> None:
    plan = attn_surgery.plan(nn.Sequential(Asks("slice")), "se", position="identity")
    assert plan.sites == ()
    assert "is changed before it is taken" in plan.skipped[0].reason


def test_the_other_part_of_a_split_is_no_change() -> None:
    host = nn.Sequential(TwoParts("itself"))
    assert attn_surgery.plan(host, "se", position="identity").sites


class Returned(Block):
    """The output of a module is changed before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        short = self.short(y)
        return self.body(y) * short


@pytest.mark.parametrize("alias", ["identity", "dropout"])
def test_the_output_of_a_module(alias: str) -> None:
    host, x = nn.Sequential(nn.Conv2d(4, 4, 1), Returned(alias)).eval(), torch.randn(2, 4, 8, 8)
    expected = host(x)
    plan = attn_surgery.plan(host, "se", where=["1.short", "1.body"], position="output")
    assert [site.block for site in plan.sites] == ["1.body"]
    assert [site.reason for site in plan.skipped] == [
        "its value is changed in place before it is used"
    ]
    attn_surgery.apply(host, plan)
    assert torch.equal(host(x), expected)
