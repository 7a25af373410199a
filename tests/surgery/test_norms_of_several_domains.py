"""A norm for each domain, chosen by what the model is given: the branch has one attention for all.

As in the code published with "Domain-Specific Batch Normalization for Unsupervised Domain
Adaptation" (Chang et al. 2019, arXiv:1906.03950), whose norms hand their domain on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery

DOMAINS = 3


class Norms(nn.Module):
    """The domain finds the norm in a list."""

    def __init__(self, channels: int):
        super().__init__()
        self.bns: Any = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(DOMAINS))

    def forward(self, x: Tensor, domain: Any) -> Any:
        return self.bns[domain](x), domain


class NormsByTheFirst(Norms):
    def forward(self, x: Tensor, domain: Any) -> Any:
        return self.bns[domain[0]](x), domain


class NormsByNumber(Norms):
    def forward(self, x: Tensor, domain: Any) -> Any:
        return self.bns[int(domain)](x), domain


class NormsInSequence(Norms):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.bns = nn.Sequential(*self.bns)


class NormsByName(Norms):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.bns = nn.ModuleDict({str(i): each for i, each in enumerate(self.bns)})


class NormsByText(NormsByName):
    def forward(self, x: Tensor, domain: Any) -> Any:
        return self.bns[str(domain)](x), domain


class NormsByAttribute(Norms):
    def __init__(self, channels: int):
        super().__init__(channels)
        del self.bns
        for i in range(DOMAINS):
            setattr(self, f"bn{i}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor, domain: Any) -> Any:
        return getattr(self, f"bn{domain}")(x), domain


class Block(nn.Module):
    """Published so: the domain goes in and out with the map."""

    def __init__(self, norms: type[Norms], width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(8, width, 3, stride, 1, bias=False)
        self.bn1 = norms(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norms(width)
        self.conv3 = nn.Conv2d(8, width, 1, stride, bias=False) if stride > 1 else None
        self.bn3 = norms(width) if stride > 1 else None

    def forward(self, x: Tensor, domain: Any) -> Any:
        residual = x
        out, _ = self.bn1(self.conv1(x), domain)
        out, _ = self.bn2(self.conv2(F.relu(out)), domain)
        if self.conv3 is not None and self.bn3 is not None:
            residual, _ = self.bn3(self.conv3(x), domain)
        out += residual
        return F.relu(out), domain


class ByItself(Block):
    """The block chooses among norms of its own."""

    def forward(self, x: Tensor, domain: Any) -> Any:
        out = F.relu(self.bn1.bns[domain](self.conv1(x)))
        out = self.bn2.bns[domain](self.conv2(out))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return F.relu(out + shortcut), domain


class Net(nn.Module):
    def __init__(self, norms: type[Norms], block: type[Block] = Block):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1, self.layer2 = block(norms, 8), block(norms, 16, stride=2)

    def forward(self, x: Tensor, domain: Any) -> Tensor:
        x, domain = self.layer1(self.stem(x), domain)
        return self.layer2(x, domain)[0].mean((2, 3))


WAYS: list[tuple[type[Norms], type[Block], Callable[[int], Any]]] = [
    (Norms, Block, int),
    (Norms, Block, torch.tensor),
    (NormsInSequence, Block, int),
    (NormsByTheFirst, Block, lambda domain: [domain]),
    (NormsByTheFirst, Block, lambda domain: torch.tensor([domain, domain])),
    (NormsByNumber, Block, torch.tensor),
    (NormsByName, Block, str),
    (NormsByText, Block, int),
    (NormsByAttribute, Block, int),
    (Norms, ByItself, int),
]


@pytest.mark.parametrize(("norms", "block", "given"), WAYS)
@pytest.mark.parametrize("training", [False, True])
def test_every_domain_has_attention(
    norms: type[Norms], block: type[Block], given: Callable[[int], Any], training: bool
) -> None:
    net = Net(norms, block).train(training)
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    inserted = attn_surgery.inserted(net)
    assert sorted(path.partition(".")[0] for path in inserted) == ["layer1", "layer2"]
    ran: list[str] = []
    for path, attention in inserted.items():
        attention.register_forward_hook(lambda *_, path=path: ran.append(path))
    for domain in range(DOMAINS):
        ran.clear()
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(net(x, given(domain)), before(x, given(domain)))
        assert sorted(ran) == sorted(inserted)
    assert attn_surgery.remove(net).state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize(("norms", "block", "given"), WAYS)
def test_the_attention_scales_the_branch(
    norms: type[Norms], block: type[Block], given: Callable[[int], Any]
) -> None:
    net = Net(norms, block).eval()
    attn_surgery.apply(net, Zero, init="paper")
    for domain in range(DOMAINS):
        x = torch.randn(2, 3, 8, 8)
        y = F.relu(net.stem(x))
        assert torch.equal(net.layer1(y, given(domain))[0], y)


class Zero(nn.Module):
    """Takes the branch away."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0
