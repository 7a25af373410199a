"""The rules of what a residual block is, one small host for each."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional as F

import attn_surgery
from attn_surgery import Site

C = 8


def conv(channels: int = C, kernel_size: int = 3, out: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(channels, out or channels, kernel_size, padding=kernel_size // 2, bias=False)


class Block(nn.Module):
    """conv-bn-relu-conv-bn, added to its input as a subclass spells it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(C)
        self.scale = 0.5
        self.gamma = nn.Parameter(torch.full((C, 1, 1), 0.1))
        self.drop = nn.Dropout(0.2)
        self.skip_add = FloatFunctional()
        self.join = lambda a, b: a + b

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.branch(x))

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        raise NotImplementedError


SPELLINGS = {
    "+": lambda self, x, out: out + x,
    "x +": lambda self, x, out: x + out,
    "+=": lambda self, x, out: operator.iadd(out, x),
    "torch.add": lambda self, x, out: torch.add(x, out),
    "torch.add alpha": lambda self, x, out: torch.add(x, out, alpha=0.5),
    "torch.add keywords": lambda self, x, out: torch.add(input=x, other=out),
    ".add": lambda self, x, out: x.add(out),
    ".add_": lambda self, x, out: out.add_(x),
    "FloatFunctional.add": lambda self, x, out: self.skip_add.add(out, x),
    "FloatFunctional.add_relu": lambda self, x, out: self.skip_add.add_relu(out, x),
    "reduce": lambda self, x, out: functools.reduce(operator.add, [x, out]),
    "sum": lambda self, x, out: sum([x, out]),
    "a lambda": lambda self, x, out: self.join(x, out),
    "constant factor": lambda self, x, out: x + 0.1 * out,
    "factor attribute": lambda self, x, out: x + out * self.scale,
    "factor on x": lambda self, x, out: x * 0.7 + out,
    "layer scale": lambda self, x, out: x + self.gamma * out,
    "dropout": lambda self, x, out: x + self.drop(out),
    "functional dropout": lambda self, x, out: x + F.dropout(out, 0.2, self.training),
    "scale and drop": lambda self, x, out: x + self.drop(self.gamma * out) * self.scale,
    "final relu": lambda self, x, out: F.relu(out + x, inplace=True),
    "divided": lambda self, x, out: (x + out / 2) / 1.4,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_addition_is_one_site_before_it(spelling):
    host = type("Spelled", (Block,), {"add": SPELLINGS[spelling]})()
    (site,) = attn_surgery.plan(host, "se").sites
    assert (site.block, site.after, site.channels, site.spatial_dims) == ("", "bn2", C, 2)


def test_a_statement_that_adds_in_place_is_seen():
    class InPlace(Block):
        def add(self, x, out):
            out.add_(x)
            return F.relu(out)

    check_one_site(InPlace(), "bn2")


def augmented_alias(self, x):
    y = x * 1.0
    z = y
    y += self.branch(x)
    return y + z * 0.1


def augmented_factor(self, x):
    out = self.branch(x)
    same = out
    out *= 0.5
    return same + x


def added_into_the_input(self, x):
    x += self.branch(x)
    return x


def set_item(self, x):
    out = self.branch(x)
    out[:] = out + x
    return out


@pytest.mark.parametrize(
    "forward",
    [augmented_alias, augmented_factor, added_into_the_input, set_item],
    ids=lambda function: function.__name__,
)
def test_what_changes_in_place_changes_for_every_name(forward):
    host = type("InPlace", (Block,), {"forward": forward})().eval()
    x = torch.randn(2, C, 6, 6)
    given, expected = x.clone(), host(same := x.clone())
    attn_surgery.apply(host, "se", reduction=2)
    assert torch.equal(host(given), expected)
    assert torch.equal(given, same)


class ActsInPlace(Block):
    """The last activation is a statement."""

    def branch(self, x):
        out = super().branch(x)
        F.relu_(out)
        return out

    def add(self, x, out):
        return out + x


class AddsInPlace(Block):
    """What is returned is the shortcut, changed by a statement."""

    def add(self, x, out):
        identity = x.clone()
        identity.add_(out)
        return identity


def test_a_statement_may_end_the_branch():
    check_one_site(ActsInPlace(), "relu_")


def test_the_attention_acts_on_what_a_statement_made():
    host = ActsInPlace().eval()
    x = torch.randn(2, C, 6, 6)
    before = host(x)
    attn_surgery.apply(host, "se", reduction=2)
    (attention,) = attn_surgery.inserted(host).values()
    nn.init.constant_(attention.get_parameter("fc2.bias"), -100.0)
    torch.testing.assert_close(host(x), x, rtol=0, atol=0)
    assert not torch.equal(before, x)


class EndsInPlace(Block):
    """A child of several layers changes its own tensor last, not the block's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(C), nn.SiLU(inplace=True))

    def forward(self, x):
        out = self.body(x)
        out += x
        return out


class ChangesWhatItIsGiven(nn.Module):
    def forward(self, x):
        F.relu_(x)
        return x


class ActsInAChild(Block):
    def __init__(self):
        super().__init__()
        self.act = ChangesWhatItIsGiven()

    def add(self, x, out):
        self.act(out)
        return out + x


def test_a_child_may_change_its_own_tensor_or_what_it_is_given():
    check_one_site(EndsInPlace(), "body")
    host = ActsInAChild().eval()
    x = torch.randn(2, C, 6, 6)
    expected = host(x)
    (site,) = attn_surgery.plan(host, "se").sites
    assert (site.after, site.method) == ("act", "rewrite")
    attn_surgery.apply(host, "se", reduction=2)
    assert torch.equal(host(x), expected)
    (attention,) = attn_surgery.inserted(host).values()
    nn.init.constant_(attention.get_parameter("fc2.bias"), -100.0)
    assert torch.equal(host(x), x)


def test_a_block_that_changes_in_place_is_followed_from_outside():
    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = AddsInPlace(), conv()

        def forward(self, x):
            return x + self.last(self.block(x))

    plan = attn_surgery.plan(Group(), "se")
    assert {(s.block, s.after) for s in plan.sites} == {("block", "bn2"), ("", "last")}


def check_one_site(host: nn.Module, after: str, block: str = "") -> Site:
    plan = attn_surgery.plan(host, "se", existing="stack")
    assert [(site.block, site.after) for site in plan.sites] == [(block, after)], str(plan)
    before = {name: id(p) for name, p in host.named_parameters()}
    x = torch.randn(2, C, 6, 6)
    for mode in (False, True):
        host.train(mode)
        torch.manual_seed(0)
        expected = host(x.clone())
        attn_surgery.apply(host, "se", existing="stack", reduction=2)
        torch.manual_seed(0)
        assert torch.equal(host(x.clone()), expected)
        assert before.items() <= {name: id(p) for name, p in host.named_parameters()}.items()
        attn_surgery.remove(host)
    return plan.sites[0]


class Shortcut(Block):
    def __init__(self, shortcut):
        super().__init__()
        self.shortcut = shortcut

    def add(self, x, out):
        return out + self.shortcut(x)


class Pad(nn.Module):
    def forward(self, x):
        return F.pad(x[:, :, :, :], (0, 0, 0, 0, 0, 0))


class CatZeros(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.zeros_like(x[:, :0])], dim=1)


@pytest.mark.parametrize(
    "shortcut",
    [
        nn.Identity(),
        conv(kernel_size=1),
        nn.Sequential(conv(kernel_size=1), nn.BatchNorm2d(C)),
        nn.Sequential(nn.AvgPool2d(1), conv(kernel_size=1), nn.GroupNorm(2, C)),
        nn.MaxPool2d(1),
        Pad(),
        CatZeros(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_identities_and_projections_are_shortcuts(shortcut):
    check_one_site(Shortcut(shortcut), "bn2")


class PreActivation(Block):
    def branch(self, x):
        x = self.conv1(torch.relu(self.bn1(x)))
        return self.conv2(torch.relu(self.bn2(x)))

    def add(self, x, out):
        return x + out


class ForwardCalls(Block):
    """Children called by ``.forward``, which runs no hooks."""

    def branch(self, x):
        x = torch.relu(self.bn1.forward(self.conv1.forward(x)))
        return self.bn2.forward(self.conv2.forward(x))

    def add(self, x, out):
        return x + out


class Functional(Block):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, C, 3, 3) * 0.1)
        self.padding = 1

    def branch(self, x):
        return F.conv2d(F.relu(F.conv2d(x, self.weight, None, 1, 1)), self.weight, padding=1)

    def add(self, x, out):
        return x + out


class ChannelsLastInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw = nn.Conv2d(C, C, 7, padding=3, groups=C)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(C), nn.Linear(C, 16), nn.Linear(16, C)
        self.gamma = nn.Parameter(torch.full((C, 1, 1), 0.1))

    def forward(self, x):
        out = self.norm(self.dw(x).permute(0, 2, 3, 1))
        out = self.fc2(F.gelu(self.fc1(out))).permute(0, 3, 1, 2)
        return x + self.gamma * out


class ScaledBeforePermuting(ChannelsLastInside):
    """ConvNeXt as its authors wrote it: the layer scale comes before the permutation."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((C,), 0.1))

    def forward(self, x):
        out = self.norm(self.dw(x).permute(0, 2, 3, 1))
        out = self.gamma * self.fc2(F.gelu(self.fc1(out)))
        return x + out.permute(0, 3, 1, 2)


class ActivationAtTheEnd(Block):
    def branch(self, x):
        return F.relu(super().branch(x))

    def add(self, x, out):
        return x + out


@pytest.mark.parametrize(
    ("host", "after"),
    [
        (PreActivation(), "conv2"),
        (ForwardCalls(), "bn2"),
        (Functional(), "conv2d_1"),
        (ChannelsLastInside(), "permute_1"),
        (ScaledBeforePermuting(), "fc2"),
        (ActivationAtTheEnd(), "relu_1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_branch_ends_after_its_last_norm_activation_or_transform(host, after):
    check_one_site(host, after)


def test_attention_before_a_permutation_sees_maps():
    host = ScaledBeforePermuting()
    with torch.no_grad():
        host.gamma.fill_(1.0)
    attn_surgery.apply(host, "se", reduction=2)
    seen = []
    host.get_submodule("attn").register_forward_hook(lambda _, args, out: seen.append(args[0]))
    host(torch.randn(2, C, 6, 5))
    assert seen[0].shape == (2, C, 6, 5)


class AddChild(nn.Module):
    def forward(self, a, b):
        return a + b


class ParentForks(Block):
    def __init__(self):
        super().__init__()
        self.merge = AddChild()

    def add(self, x, out):
        return self.merge(out, x)


def test_a_child_may_only_add():
    check_one_site(ParentForks(), "bn2")


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(C)

    def forward(self, x, shortcut):
        return F.relu(self.bn(self.conv(x)) + shortcut)


class HandsOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU()), Last()

    def forward(self, x):
        return self.last(self.first(x), x)


def test_a_child_may_end_the_branch_and_add():
    check_one_site(HandsOver(), "bn", block="last")


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(C))

    def forward(self, x):
        return [x, self.body(x)]


class Merge(nn.Module):
    def forward(self, pair):
        total = 0
        for each in pair:
            total = total + each
        return total


def test_a_sequential_may_hand_on_lists():
    check_one_site(nn.Sequential(Split(), Merge()), "0.body")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(C)

    def forward(self, x):
        x = x + F.relu(self.bn1(self.conv1(x)))
        return x + F.relu(self.bn2(self.conv2(x)))


def test_one_forward_may_hold_several():
    plan = attn_surgery.plan(Twice(), "se")
    assert [(site.block, site.after) for site in plan.sites] == [("", "relu"), ("", "relu_1")]
    host = attn_surgery.apply(Twice(), "se")
    assert list(attn_surgery.inserted(host)) == ["attn", "attn_1"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(PreActivation(), PreActivation())

    def forward(self, x):
        return x + 0.2 * self.body(x)


def test_residual_blocks_may_be_the_branch_of_another():
    plan = attn_surgery.plan(Nested(), "se")
    assert {(s.block, s.after) for s in plan.sites} == {
        ("body.0", "conv2"),
        ("body.1", "conv2"),
        ("", "body"),
    }


class Looping(nn.Module):
    """An outer model with control flow is not in the way."""

    def __init__(self):
        super().__init__()
        self.block = PreActivation()

    def forward(self, images):
        out = []
        for image in images:
            while image.sum() > 0:
                image = self.block(image)
            out.append(image)
        return out


def test_control_flow_around_a_block():
    plan = attn_surgery.plan(Looping(), "se")
    assert [site.block for site in plan.sites] == ["block"]


class ReturnsTwo(Block):
    """A block whose forward returns several values."""

    def forward(self, x: Tensor) -> Any:
        return x + self.branch(x), x


class FailsLater(nn.Module):
    """It cannot be followed to its end, and calls such a part before that."""

    def __init__(self):
        super().__init__()
        self.part = ReturnsTwo()

    def forward(self, x):
        x, _ = self.part(x)
        return torch.finfo(x.new_tensor(0).item()).max * x


class Outermost(nn.Module):
    def __init__(self):
        super().__init__()
        self.fails = FailsLater()

    def forward(self, x):
        return self.fails(x)


def test_what_was_called_before_a_failure_is_followed_on_its_own():
    plan = attn_surgery.plan(Outermost(), "se")
    assert [site.block for site in plan.sites] == ["fails.part"]


# What looks like a residual block and is none.


class Decoy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = conv(kernel_size=1), nn.BatchNorm2d(C)
        self.half = nn.Sequential(conv(C // 2), nn.ReLU(), conv(C // 2))
        self.fc1, self.fc2 = nn.Linear(C, C), nn.Linear(C, C)
        self.norm = nn.LayerNorm(C)

    def body(self, x):
        return F.relu(self.bn1(self.conv1(x)))

    def forward(self, x):
        raise NotImplementedError


def reparameterisable(self, x):
    return F.relu(self.bn1(self.conv1(x)) + self.bn2(self.conv2(x)) + x)


def positional_encoding(self, x):
    return x + self.conv1(x)


def chunks(self, x):
    a, b = x.chunk(2, 1)
    return torch.cat([a + self.half(b), b], 1)


def slices(self, x):
    return x[:, : C // 2] + self.half(x[:, C // 2 :])


def top_down(self, x):
    low = F.max_pool2d(self.body(x), 2)
    return self.conv2(x) + F.interpolate(low, scale_factor=2.0)


def gated_update(self, x):
    z, q = torch.sigmoid(self.conv1(x)), torch.tanh(self.conv2(x))
    return (1 - z) * x + z * q


def gated_update_by_a_difference(self, x):
    z, q = torch.sigmoid(self.conv1(x)), torch.tanh(self.conv2(x))
    return x + z * (q - x)


def pyramid(self, x):
    ways = zip((self.conv1, self.conv1), (3, 5), strict=True)
    total: Any = sum(conv(F.max_pool2d(x, k, 1, k // 2)) for conv, k in ways)
    return F.relu(total)


def modulated(self, x):
    m = F.relu(self.conv2(x.mean(1, keepdim=True).expand_as(x)))
    return self.bn1(x) * (1 + self.conv1(m)) + self.conv1(m)


def two_branches(self, x):
    return self.body(x) + F.relu(self.conv2(x))


def tokens(self, x):
    t = x.flatten(2).transpose(1, 2)
    return t + self.fc2(F.gelu(self.fc1(self.norm(t))))


def channels_last(self, x):
    x = x.permute(0, 2, 3, 1)
    x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
    return x.permute(0, 3, 1, 2)


def channel_mlp(self, x):
    return x + self.conv2(F.gelu(self.conv2(x)))


def self_attention(self, x):
    q, k = self.conv2(x).flatten(2), self.conv2(x).flatten(2)
    v = (q.transpose(1, 2) @ k).softmax(-1) @ q.transpose(1, 2)
    return x + self.conv2(v.transpose(1, 2).reshape(x.shape))


def inside_attention(self, x):
    avg, top = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return x * torch.sigmoid(self.conv2(F.relu(self.conv2(avg))) + self.conv2(top))


@pytest.mark.parametrize(
    "forward",
    [
        reparameterisable,
        positional_encoding,
        chunks,
        slices,
        top_down,
        gated_update,
        gated_update_by_a_difference,
        pyramid,
        modulated,
        two_branches,
        tokens,
        channels_last,
        channel_mlp,
        self_attention,
        inside_attention,
    ],
    ids=lambda function: function.__name__,
)
def test_what_is_no_residual_block(forward):
    plan = attn_surgery.plan(type("Trap", (Decoy,), {"forward": forward})(), "se")
    assert not plan.sites, str(plan)
    assert all(site.reason for site in plan.skipped)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(), conv())

    def forward(self, x, y):
        return x + self.body(y)


def test_different_arguments_are_different_tensors():
    assert not attn_surgery.plan(TwoInputs(), "se").sites


class Masked(Block):
    """As in networks for speech, each block takes the same mask."""

    def forward(self, x, mask):  # pyright: ignore[reportIncompatibleMethodOverride]
        return x + self.branch(x * mask) * mask


class AllMasked(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = conv(kernel_size=1), nn.ModuleList([Masked(), Masked(), Masked()])

    def forward(self, x, mask):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


@pytest.mark.parametrize("existing", ["skip", "replace"])
def test_a_mask_that_all_blocks_take_is_gated_by_none(existing):
    plan = attn_surgery.plan(AllMasked(), "se", existing=existing)
    assert [(site.block, site.method) for site in plan.sites] == [
        (f"blocks.{i}", "rewrite") for i in range(3)
    ]


# Attention that is there already.


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, 2, 1), nn.Conv2d(2, C, 1)

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(s))))


class Scaled(Gate):
    def forward(self, x):
        return x * super().forward(x)


class GatedByChild(Block):
    def __init__(self):
        super().__init__()
        self.weigh = Gate()

    def add(self, x, out):
        return out * self.weigh(out) + x


class ScaledInside(Block):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(), Scaled(), conv(), nn.BatchNorm2d(C))

    def branch(self, x):
        return self.body(x)

    def add(self, x, out):
        return out + x


class Swish(Block):
    def branch(self, x):
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(x * torch.sigmoid(x)))

    def add(self, x, out):
        return out + x


@pytest.mark.parametrize(
    ("host", "existing"),
    [(GatedByChild(), "weigh"), (ScaledInside(), "body.2"), (Swish(), None)],
    ids=lambda value: type(value).__name__,
)
def test_existing_attention_is_known_by_its_structure(host, existing):
    plan = attn_surgery.plan(host, "se", existing="stack")
    assert [site.existing for site in plan.sites] == [existing]
    skipping = attn_surgery.plan(host, "se")
    assert bool(skipping.sites) == (existing is None)


@pytest.mark.parametrize("dims", [1, 3])
def test_volumes_and_signals(dims):
    conv_type, norm_type = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)

    class Signal(Block):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv_type(C, C, 3, padding=1), norm_type(C)
            self.conv2, self.bn2 = conv_type(C, C, 3, padding=1), norm_type(C)

        def add(self, x, out):
            return x + out

    host = Signal().eval()
    (site,) = attn_surgery.plan(host).sites
    assert (site.channels, site.spatial_dims) == (C, dims)
    x = torch.randn(2, C, *[6] * dims)
    expected = host(x)
    assert torch.equal(attn_surgery.apply(host, "cbam", reduction=2)(x), expected)
