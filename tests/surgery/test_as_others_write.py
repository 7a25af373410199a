"""Small networks as people write them outside of the zoos: what a plan says of them is so."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import attn_surgery
from attn_surgery import SurgeryError

ATTENTIONS = "se cbam eca coord simam gct srm triplet scale adapter".split()


def convs(c: int, count: int = 2) -> list[nn.Conv2d]:
    return [nn.Conv2d(c, c, 3, padding=1) for _ in range(count)]


def places(host: nn.Module, **asked: Any) -> list[tuple[str, str]]:
    return [(site.block, site.after) for site in attn_surgery.plan(host, "se", **asked).sites]


def move_gates(host: nn.Module) -> None:
    """Stand for some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for gate in attn_surgery.inserted(host).values():
            for parameter in gate.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))


# A copy is the model


class Super(nn.Sequential):
    def forward(self, input: Any) -> Any:
        return input + super().forward(input)


class Looping(nn.Sequential):
    def forward(self, input: Any) -> Any:
        f = input
        for layer in self:
            f = layer(f)
        return input + f


class Called(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def __call__(self, x: Any) -> Any:
        return x + self.layers(x)


class Children(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def forward(self, x: Any) -> Any:
        f = x
        for layer in self.children():
            f = layer(f)
        return x + f


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def with_block(kind: Callable[..., nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = convs(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(first, nn.ReLU(), last)).eval()


@pytest.mark.parametrize("kind", [Super, Looping, Called, Children])
@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_a_copy_computes_what_the_model_does(
    kind: Callable[..., nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    host, x = with_block(kind), torch.randn(1, 3, 8, 8)
    expected = host(x)
    assert torch.equal(attn_surgery.apply(host, "se")(x), expected)
    move_gates(host)
    moved = host(x)
    assert not torch.equal(moved, expected)
    assert torch.equal(copied(host)(x), moved)
    assert torch.equal(copied(copied(host))(x), moved)
    assert torch.equal(attn_surgery.remove(host)(x), expected)


@pytest.mark.parametrize("kind", [Super, Looping])
class TestAContainerThatIsABlock:
    def test_lists_what_the_host_lists(self, kind: type[nn.Sequential]) -> None:
        host = with_block(kind)
        layers = list(host[1])  # pyright: ignore[reportArgumentType]
        block: Any = attn_surgery.apply(host, "se")[1]  # pyright: ignore[reportIndexIssue]
        assert len(block) == 3
        assert list(block) == layers
        assert block[-1] is layers[-1]
        assert type(block[:2]) is kind
        assert list(dict(block.named_children())) == ["0", "1", "2", "attn"]

    def test_grows_and_shrinks_as_the_host_does(self, kind: type[nn.Sequential]) -> None:
        host, x = with_block(kind), torch.randn(1, 3, 8, 8)
        plain = copy.deepcopy(host)
        attn_surgery.apply(host, "se")
        for change in (
            lambda block: block.append(nn.Tanh()),
            lambda block: block.__delitem__(1),
            lambda block: block.insert(0, nn.Sigmoid()),
            lambda block: block.__setitem__(0, nn.ReLU()),
            lambda block: block.pop(0),
            lambda block: block.extend([nn.Tanh(), nn.ReLU()]),
        ):
            change(plain[1])
            change(host[1])
            assert torch.equal(host(x), plain(x))
            assert [type(each) for each in host[1]] == [type(each) for each in plain[1]]  # pyright: ignore[reportGeneralTypeIssues]
        attn_surgery.remove(host)
        assert list(host.state_dict()) == list(plain.state_dict())

    def test_is_cut_twice_as_once(self, kind: type[nn.Sequential]) -> None:
        host, x = with_block(kind), torch.randn(1, 3, 8, 8)
        attn_surgery.apply(host, "se")
        move_gates(host)
        moved = host(x)
        assert torch.equal(attn_surgery.apply(host, "cbam", existing="stack")(x), moved)

    def test_keeps_its_attention_where_its_step_goes(self, kind: type[nn.Sequential]) -> None:
        host = with_block(kind)
        block: Any = attn_surgery.apply(host, "se")[1]  # pyright: ignore[reportIndexIssue]
        move_gates(host)
        x, (_, relu, last) = torch.randn(1, 8, 8, 8), list(block)
        del block[0]
        assert torch.equal(block(x), x + block.attn(last(relu(x))))

    def test_refuses_to_lose_what_its_attention_follows(self, kind: type[nn.Sequential]) -> None:
        host, x = with_block(kind), torch.randn(1, 3, 8, 8)
        block: Any = attn_surgery.apply(host, "se")[1]  # pyright: ignore[reportIndexIssue]
        expected = host(x)
        with pytest.raises(SurgeryError, match=r"call attn_surgery\.remove first"):
            del block[2]
        assert len(block) == 3
        assert torch.equal(host(x), expected)


# A plan that is true


class Branches(nn.Module):
    def __init__(self, join: Callable[[list[Tensor]], Tensor]):
        super().__init__()
        self.branches, self.join = nn.ModuleList(convs(8, 3)), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([torch.relu(branch(x)) for branch in self.branches])


class Joined(nn.Module):
    """x + what is made of three branches."""

    def __init__(self, join: Callable[[list[Tensor]], Tensor]):
        super().__init__()
        self.first, self.branches = convs(8, 1)[0], Branches(join)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branches(torch.relu(self.first(x)))


EIGHT: list[Callable[[list[Tensor]], Tensor]] = [
    lambda maps: torch.stack(maps, dim=1).sum(dim=1),
    lambda maps: torch.stack(maps).mean(0),
    lambda maps: torch.stack(maps, -1).amax(-1),
    lambda maps: torch.stack(maps, 2).sum(dim=2),
    lambda maps: torch.cat([maps[0][:, :4], torch.zeros_like(maps[0][:, :4])], 1),
    lambda maps: torch.cat([maps[0][:, :3], maps[1].narrow(1, 3, 5)], dim=-3),
    lambda maps: torch.cat([maps[0][:, :, :4], maps[1][:, :, 4:]], 2),
    lambda maps: maps[0] * maps[1].mean((2, 3), keepdim=True),
    lambda maps: maps[1].mean(1, keepdim=True) * maps[0],
    lambda maps: torch.cat(torch.split(maps[0], [3, 5], 1)[::1], 1),
]
NARROW: list[Callable[[list[Tensor]], Tensor]] = [
    lambda maps: maps[0].mean(1, keepdim=True),
    lambda maps: maps[0].mean(1).unsqueeze(1),
    lambda maps: maps[0].amax(1)[:, None],
    lambda maps: maps[0].max(1, keepdim=True)[0],
    lambda maps: maps[0].narrow(1, 0, 1),
    lambda maps: torch.sum(maps[0], 1, True),
]


@pytest.mark.parametrize("join", EIGHT)
def test_channels_of_joined_branches(join: Callable[[list[Tensor]], Tensor]) -> None:
    host, x = nn.Sequential(nn.Conv2d(3, 8, 3), Joined(join)).eval(), torch.randn(2, 3, 8, 8)
    expected, plan = host(x), attn_surgery.plan(host, "se")
    assert [(site.channels, site.spatial_dims) for site in plan.sites] == [(8, 2)], plan
    assert torch.equal(attn_surgery.apply(host, "se")(x), expected)


@pytest.mark.parametrize("join", NARROW)
def test_no_attention_for_one_channel_that_is_spread(
    join: Callable[[list[Tensor]], Tensor],
) -> None:
    plan = attn_surgery.plan(nn.Sequential(nn.Conv2d(3, 8, 3), Joined(join)), "se")
    assert [site.reason for site in plan.skipped] == [
        "the branch ends in one channel, which the addition spreads over all"
    ], plan


def folded(x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    y = step(x.flatten(0, 1))
    return y.view(x.shape[0], x.shape[1], *y.shape[1:])


class FoldedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return folded(input, super().forward)


class FoldedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return folded(input, super().forward)


class Timed(nn.Module):
    """A block of a spiking network, over (T, N, C, H, W)."""

    def __init__(self, c: int):
        super().__init__()
        self.c1, self.n1 = FoldedConv(c, c, 3, padding=1, bias=False), FoldedNorm(c)
        self.c2, self.n2 = FoldedConv(c, c, 3, padding=1, bias=False), FoldedNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.n2(self.c2(torch.relu(self.n1(self.c1(x))))))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_maps_over_time_are_no_maps(attention: str) -> None:
    host, x = nn.Sequential(Timed(8), Timed(8)).eval(), torch.randn(4, 2, 8, 6, 6)
    expected = host(x)
    with pytest.raises(SurgeryError, match="unknown"):
        attn_surgery.apply(host, attention)
    assert torch.equal(host(x), expected)


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), weight, self.bias)


class Prepared(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.c1, self.c2 = Standardised(c, c, 3), Standardised(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c2(torch.relu(self.c1(x)))


def test_a_convolution_that_prepares_its_weight_is_one():
    assert places(nn.Sequential(Prepared(8))) == [("0", "c2")]


# Wholes hold what their parts do


class Embedder(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.channels, self.conv = channels, nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, pixels: Any) -> Any:
        if pixels.shape[1] != self.channels:
            raise ValueError("the channels of the pixels are not those of the configuration")
        return self.conv(pixels)


class InPlace(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        first, last = convs(c)
        self.layer = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, x: Any) -> Any:
        shortcut = x
        x = self.layer(x)
        x += shortcut
        return torch.relu(x)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder, self.blocks = Embedder(3, 8), nn.Sequential(InPlace(8), InPlace(8))

    def forward(self, pixels: Any) -> Any:
        return self.blocks(self.embedder(pixels))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(8, 4)

    def forward(self, pixels: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.head(self.body(pixels).mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Pair(Classifier):
    def forward(self, tokens: Any = None, pixels: Any = None, labels: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if pixels is None:
            raise ValueError("no pixels")
        bias = 0 if tokens is None else tokens.float().mean()
        return super().forward(pixels, labels)["logits"] + bias


class TimeFirst(Classifier):
    def forward(self, time: Any, pixels: Any = None, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(pixels)["logits"] * time


class OwnBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = convs(8)

    def forward(self, pixels: Any = None, **kwargs: Any) -> Any:
        if pixels is None:
            raise ValueError("you have to specify pixels")
        return pixels + self.last(self.first(pixels).relu())


@pytest.mark.parametrize("whole", [Classifier, Pair, TimeFirst])
def test_a_whole_with_optional_inputs_holds_what_its_parts_do(whole: type[nn.Module]) -> None:
    part = [(f"body.{block}", after) for block, after in places(Body())]
    assert places(whole()) == part == [("body.blocks.0", "layer"), ("body.blocks.1", "layer")]
    assert attn_surgery.plan(whole(), "se").skipped == ()


def test_a_block_that_refuses_its_default_is_one():
    plan = attn_surgery.plan(OwnBlock(), "se")
    assert ([site.after for site in plan.sites], plan.skipped) == (["last"], ())


class Fork(nn.Module):
    def forward(self, x: Any) -> Any:
        return [x, x]


class OnSecond(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, terms: Any) -> Any:
        return [terms[0], self.layers(terms[1])]


class Join(nn.Module):
    def forward(self, terms: Any) -> Any:
        return terms[0] + terms[1]


class Optional(nn.Module):
    """Where it is called without pixels, what its layers are given does not exist."""

    def __init__(self):
        super().__init__()
        first, last = convs(8)
        branch = (OnSecond(first, nn.ReLU()), OnSecond(last, nn.Identity()))
        self.body = nn.Sequential(Embedder(3, 8), nn.Sequential(Fork(), *branch, Join()))

    def forward(self, pixels: Any = None, hidden: Any = None) -> Any:
        y = pixels
        for part in self.body:
            y = part(y)
        return y if hidden is None else y + hidden.sum()


def test_a_way_on_which_nothing_is_given_says_nothing_of_the_others() -> None:
    host, x = Optional(), torch.randn(2, 3, 9, 9)
    expected = host(x)
    assert places(host) == [("body.1", "2.layers")]
    assert torch.equal(attn_surgery.apply(host, "se")(x), expected)
    move_gates(host)
    assert not torch.equal(host(x), expected)


class Vocoder(nn.Module):
    """Made of noise when it is given none, as vocoders are."""

    def __init__(self):
        super().__init__()
        self.body, self.time = Body(), nn.Linear(4, 8)

    def forward(self, steps: Any, noise: Any = None) -> Any:
        noise = torch.randn((steps.shape[0], 3, 8, 8)) if noise is None else noise
        return self.body(noise) * self.time(steps)[..., None, None]


class LearnedStart(nn.Module):
    """Made of a learned map, as generators with styles are."""

    def __init__(self):
        super().__init__()
        self.start, self.body = nn.Parameter(torch.ones(1, 3, 8, 8)), Body()

    def forward(self, styles: Any) -> Any:
        return self.body(self.start.repeat(styles.shape[0], 1, 1, 1)) * styles


@pytest.mark.parametrize("whole", [Vocoder, LearnedStart])
def test_what_no_input_has_an_influence_on_is_found_all_the_same(whole: type[nn.Module]) -> None:
    assert places(whole()) == [("body.blocks.0", "layer"), ("body.blocks.1", "layer")]


# Conditions are no forks


def at_every_position(vector: Tensor) -> Tensor:
    return vector[:, :, None, None]


class Conditioned(nn.Module):
    def __init__(self, c: int, width: int, spread: Callable[[Tensor], Tensor]):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(4, c), nn.GroupNorm(4, c)
        (self.c1, self.c2), self.spread = convs(c), spread
        self.emb = nn.Linear(width, c)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.c1(torch.relu(self.n1(x)))
        h = h + self.spread(self.emb(t))
        return x + self.c2(torch.relu(self.n2(h)))


class ByMap(nn.Module):
    """DiffWave's and WaveNet's: every block adds its own projection of one map."""

    def __init__(self, c: int, width: int):
        super().__init__()
        self.c1, self.c2 = convs(c)
        self.project = nn.Conv2d(width, c, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.c2(torch.relu(self.c1(x) + self.project(t)))


class Noisy(nn.Module):
    def __init__(self, c: int, width: int):
        super().__init__()
        self.c1, self.c2 = convs(c)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.c2(torch.relu(self.c1(x) + self.scale * t))


class ConditionalNorm(nn.Module):
    def __init__(self, c: int, width: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, affine=False)
        self.gain, self.bias = nn.Linear(width, c), nn.Linear(width, c)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n = len(y)
        scaled = self.bn(x) * (1 + self.gain(y)).view(n, -1, 1, 1)
        return scaled + self.bias(y).view(n, -1, 1, 1)


class Generator(nn.Module):
    def __init__(self, c: int, width: int):
        super().__init__()
        self.b1, self.b2 = ConditionalNorm(c, width), ConditionalNorm(c, width)
        self.c1, self.c2 = convs(c)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.c2(torch.relu(self.b2(self.c1(torch.relu(self.b1(x, y))), y)))


class Net(nn.Module):
    def __init__(self, block: Callable[[int, int], nn.Module]):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), block(8, 4), block(8, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(self.a(self.stem(x), t), t)


SPREADS: list[Callable[[Tensor], Tensor]] = [
    at_every_position,
    lambda vector: vector.unsqueeze(-1).unsqueeze(-1),
    lambda vector: vector[..., None, None],
    lambda vector: vector.view(vector.shape[0], -1, 1, 1),
    lambda vector: vector.reshape(vector.size(0), 8, 1, 1),
    lambda vector: at_every_position(vector).expand(-1, -1, 8, 8),
    lambda vector: vector,
]


@pytest.mark.parametrize("spread", SPREADS)
def test_a_vector_that_every_block_adds_is_no_fork(spread: Callable[[Tensor], Tensor]) -> None:
    assert places(Net(lambda c, width: Conditioned(c, width, spread))) == [
        ("a", "c2"),
        ("b", "c2"),
    ]


@pytest.mark.parametrize("block", [ByMap, Noisy, Generator])
def test_a_condition_that_every_block_adds_is_no_fork(
    block: Callable[[int, int], nn.Module],
) -> None:
    assert places(Net(block)) == [("a", "c2"), ("b", "c2")]


# A norm is no attention


class Divisive(nn.Module):
    """GDN, Balle et al. 2016, arXiv:1511.06281, eq. 1."""

    def __init__(self, c: int, root: Callable[[Tensor], Tensor]):
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.ones(c)), nn.Parameter(0.1 * torch.eye(c))
        self.root = root

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return x * self.root(F.conv2d(x**2, self.gamma.reshape(c, c, 1, 1), self.beta))


class Normed(nn.Module):
    def __init__(self, c: int, norm: nn.Module):
        super().__init__()
        (self.c1, self.c2), self.norm = convs(c), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.c2(F.leaky_relu(self.c1(x)))) + x


ROOTS: list[Callable[[Tensor], Tensor]] = [
    torch.rsqrt,
    torch.sqrt,
    lambda total: 1 / torch.sqrt(total),
    lambda total: total**-0.5,
]


@pytest.mark.parametrize("root", ROOTS)
def test_a_divisive_norm_belongs_to_the_branch(root: Callable[[Tensor], Tensor]) -> None:
    host = Normed(8, Divisive(8, root))
    for existing in ("skip", "replace"):
        plan = attn_surgery.plan(host, "se", existing=existing)
        assert [(site.after, site.method, site.existing) for site in plan.sites] == [
            ("norm", "rewrite", None)
        ], plan


class NormedAndScaled(Normed):
    """Behind the norm, a layer scale, as it is or viewed."""

    def __init__(self, c: int, norm: nn.Module, view: Callable[[Tensor], Tensor]):
        super().__init__(c, norm)
        self.scale, self.view = nn.Parameter(torch.ones(c, 1, 1)), view

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.c2(F.leaky_relu(self.c1(x)))) * self.view(self.scale) + x


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda scale: scale,
    lambda scale: scale.view(1, -1, 1, 1),
    lambda scale: scale.exp()[None],
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_layer_scale_behind_a_divisive_norm_in_a_flat_graph(
    view: Callable[[Tensor], Tensor],
) -> None:
    """There the norm is no call either: its weights are told from the scale by who holds them."""
    host = NormedAndScaled(8, Divisive(8, torch.rsqrt), view)
    flat = fx.GraphModule(host, fx.Tracer().trace(host))
    (after,) = [site.after for site in attn_surgery.plan(flat, "se").sites]
    last = [node for node in flat.graph.nodes if node.op == "call_function"][-1]
    scaled = last.all_input_nodes[0]
    assert after == scaled.all_input_nodes[0].name


class NormedFirst(nn.Module):
    """Runs one block twice: norm, convolution, layer scale."""

    def __init__(self, c: int):
        super().__init__()
        (self.c1, self.c2), self.norm = convs(c), Divisive(c, torch.rsqrt)
        self.scale = nn.Parameter(torch.ones(c, 1, 1))

    def block(self, x: Tensor) -> Tensor:
        return self.c2(F.leaky_relu(self.c1(self.norm(x)))) * self.scale.view(1, -1, 1, 1) + x

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class ScaledByMuch(nn.Module):
    """Computes its layer scale by steps that each take the one before twice."""

    def __init__(self, c: int):
        super().__init__()
        (self.c1, self.c2), self.scale = convs(c), nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        for _ in range(64):
            scale = scale + 0.5 * scale
        return self.c2(F.leaky_relu(self.c1(x))) * scale + x


def test_steps_of_a_factor_are_looked_at_once() -> None:
    """By each way through them it would never end."""
    assert [site.after for site in attn_surgery.plan(ScaledByMuch(8), "se").sites] == ["c2"]


def test_a_norm_before_the_convolutions_is_none_of_the_branchs_end() -> None:
    host = NormedFirst(8)
    flat = fx.GraphModule(host, fx.Tracer().trace(host))
    assert [site.after for site in attn_surgery.plan(flat, "se").sites] == ["c2", "c2"]


def test_a_gate_by_a_root_of_a_sigmoid_is_one():
    gate = Divisive(8, lambda total: torch.sqrt(torch.sigmoid(total)))
    plan = attn_surgery.plan(Normed(8, gate), "se")
    assert [site.existing for site in plan.skipped] == ["norm"]


# What the host takes is taken


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_empty_batch(attention: str) -> None:
    host, x = nn.Sequential(OwnBlock()).eval(), torch.randn(0, 8, 7, 7)
    assert attn_surgery.apply(host, attention)(x).shape == host(x).shape == x.shape


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_map_without_a_batch(attention: str) -> None:
    host, x = nn.Sequential(OwnBlock()).eval(), torch.randn(8, 7, 7)
    expected = host(x)
    assert torch.equal(attn_surgery.apply(host, attention)(x), expected)


class AddsInPlace(nn.Module):
    """Reads the sum by the names of the tensor before it was changed, and after."""

    def __init__(self, c: int):
        super().__init__()
        (self.c1, self.c2), self.out = convs(c), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.c2(F.leaky_relu(self.c1(x)))
        total = f.add_(x)
        return self.out(f) + f.mean() * total


def pickled(host: Any) -> Any:
    return pickle.loads(pickle.dumps(host))


@pytest.mark.parametrize("between", [lambda host: host, copy.deepcopy, pickled])
@pytest.mark.parametrize("times", [1, 2])
def test_the_graph_of_a_host_is_given_back_as_it_was(
    between: Callable[[Any], Any], times: int
) -> None:
    host = AddsInPlace(8)
    flat = fx.GraphModule(host, fx.Tracer().trace(host))
    before = flat.code
    for _ in range(times):
        attn_surgery.apply(flat, "se", position="post", existing="stack")
    assert flat.code != before
    assert attn_surgery.remove(between(flat)).code == before
