"""Attention modules: identity start, published equations, parity with timm, refusals, registry."""

import copy
import functools
import io
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plainly import plainly
from timm.layers.cbam import CbamModule
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

from attn_surgery.attention import (
    CBAM,
    SE,
    ChannelAttention,
    SpatialAttention,
    available,
    build,
    check_options,
    get_builder,
    register,
)
from attn_surgery.attention.construction import registry
from attn_surgery.attention.construction.identity_start import IdentityStart
from attn_surgery.attention.construction.passes import pool
from attn_surgery.errors import SurgeryError

C = 32
SPATIAL = {1: (9,), 2: (5, 6), 3: (4, 3, 5)}
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MINIMAL = {"bias": False, "spatial_norm": False, "channel_order": "mean_max"}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "se": ("se", {}),
    "se-max": ("se", {"pool": "max"}),
    "se-lp": ("se", {"pool": "lp"}),
    "se-lse": ("se", {"pool": "lse"}),
    "se-none": ("se", {"pool": "none"}),
    "se-no-bias": ("se", {"bias": False}),
    "se-hidden": ("se", {"hidden_channels": 5}),
    "se-divisor": ("se", {"divisor": 8}),
    "se-narrow": ("se", {"reduction": 999}),
    "cam": ("cam", {}),
    "cam-no-bias": ("cam", {"bias": False}),
    "cam-all-pools": ("cam", {"pools": ("avg", "max", "lp", "lse")}),
    "sam": ("sam", {}),
    "sam-no-norm": ("sam", {"norm": False, "kernel_size": 3}),
    "sam-mean-max": ("sam", {"channel_order": "mean_max", "kernel_size": 1}),
    "cbam": ("cbam", {}),
    "cbam-minimal": ("cbam", MINIMAL),
    "cbam-spatial-first": ("cbam", {"order": "spatial_first"}),
    "cbam-parallel": ("cbam", {"order": "parallel"}),
    "cbam-parallel-minimal": ("cbam", {"order": "parallel", **MINIMAL}),
    "cbam-pools": ("cbam", {"pools": ["lp", "lse"], "kernel_size": 9}),
}
over_variants = pytest.mark.parametrize("variant", VARIANTS)


def made(variant: str, *, channels: int = C, spatial_dims: int = 2, init: str = "identity") -> Any:
    name, options = VARIANTS[variant]
    return build(name, channels, spatial_dims=spatial_dims, init=init, options=options)


def a_map(
    spatial_dims: int = 2,
    dtype: torch.dtype = torch.float32,
    channels: int = C,
    *,
    spatial: dict[int, tuple[int, ...]] = SPATIAL,
) -> Tensor:
    """Ordinary values, with both zeros, large and tiny values in one corner."""
    x = torch.randn(3, channels, *spatial[spatial_dims], dtype=torch.float64).to(dtype)
    special = torch.tensor([-0.0, 0.0, 300.0, -300.0, torch.finfo(dtype).tiny], dtype=dtype)
    x.view(-1)[: special.numel()] = special
    return x


def perturbed(module: Any) -> Any:
    """Move every parameter, so that no gate is trivial."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = INTS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small only lose by threads: with a busy core, a factor of 50."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class TestIdentityStart:
    @over_variants
    @pytest.mark.parametrize("spatial_dims", SPATIAL)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_output_is_the_input_bit_for_bit(self, variant, spatial_dims, dtype):
        attention = made(variant, spatial_dims=spatial_dims).to(dtype)
        x = a_map(spatial_dims, dtype)
        before = x.clone()
        for mode in (True, False, True):
            y = attention.train(mode)(x)
            assert same_bits(y, x)
            assert same_bits(x, before), "the input was changed in place"

    @settings(max_examples=40, deadline=None)
    @given(
        channels=st.integers(1, 70),
        reduction=st.integers(1, 40),
        divisor=st.integers(1, 9),
        bias=st.booleans(),
        pools=st.lists(st.sampled_from(["avg", "max", "lp", "lse"]), min_size=1, max_size=4),
        kernel_size=st.sampled_from([1, 3, 5, 7, 11]),
        spatial_norm=st.booleans(),
        channel_order=st.sampled_from(["max_mean", "mean_max"]),
        order=st.sampled_from(["channel_first", "spatial_first", "parallel"]),
        spatial_dims=st.sampled_from([1, 2, 3]),
        training=st.booleans(),
    )
    def test_every_combination_of_cbam_options(self, channels, spatial_dims, training, **options):
        cbam = build("cbam", channels, spatial_dims=spatial_dims, options=options).train(training)
        x = a_map(spatial_dims, channels=channels)
        assert same_bits(cbam(x), x)

    @over_variants
    def test_gradients_of_the_first_step(self, variant):
        attention = made(variant).double()
        x = a_map(dtype=torch.float64).requires_grad_()
        upstream = torch.randn(x.shape, dtype=x.dtype)
        attention(x).backward(upstream)
        assert x.grad is not None
        assert torch.equal(x.grad, upstream)
        gradients = [p.grad for p in attention.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.count_nonzero() for g in gradients)

    def test_each_half_of_cbam_gets_a_gradient(self):
        for order, spatial_norm in itertools.product(
            ("channel_first", "spatial_first", "parallel"), (True, False)
        ):
            cbam = CBAM(C, order=order, spatial_norm=spatial_norm)
            cbam(a_map()).square().sum().backward()
            for half in (cbam.channel, cbam.spatial):
                gradients = [p.grad for p in half.parameters() if p.grad is not None]
                assert any(g.count_nonzero() for g in gradients), (order, spatial_norm)

    def test_without_bias_a_hidden_unit_is_alive_for_any_map(self):
        for seed in range(20):
            torch.manual_seed(seed)
            se = SE(C, bias=False)  # two hidden units: both dead one time in four, unpaired
            se(torch.ones(1, C, 2, 2)).sum().backward()
            assert se.fc2.weight.grad is not None
            assert se.fc2.weight.grad.count_nonzero(), seed

    @over_variants
    def test_a_step_moves_the_gate_and_eval_follows(self, variant):
        attention = made(variant)
        x = a_map()
        optimizer = torch.optim.SGD(attention.parameters(), lr=0.01)
        attention(x).square().mean().backward()
        optimizer.step()
        assert not torch.equal(attention(x), x)
        assert not torch.equal(attention.eval()(x), x)

    @over_variants
    def test_paper_start_is_another_function(self, variant):
        x = a_map()
        assert not torch.allclose(made(variant, init="paper")(x), x, atol=0.1)

    def test_all_zero_map_has_finite_gradients(self):
        cam = ChannelAttention(C, pools=("avg", "max", "lp", "lse"), init="paper")
        x = torch.zeros(2, C, 3, 3, requires_grad=True)
        cam(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()

    def test_wrapped_module_starts_equal_and_learns_alpha_first(self):
        for dtype in DTYPES:
            wrapped = IdentityStart(nn.Conv2d(C, C, 3, padding=1)).to(dtype)
            x = a_map(dtype=dtype)
            assert torch.equal(wrapped(x), x)
            assert wrapped(x).dtype == dtype
        wrapped = IdentityStart(nn.Conv2d(C, C, 3, padding=1))
        x = a_map()
        wrapped(x).square().sum().backward()
        assert wrapped.alpha.grad is not None
        assert wrapped.alpha.grad != 0
        for parameter in wrapped.f.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.count_nonzero()
        nn.init.ones_(wrapped.alpha)
        torch.testing.assert_close(wrapped(x), wrapped.f(x))
        nn.init.constant_(wrapped.alpha, 0.25)
        torch.testing.assert_close(wrapped(x), 0.75 * x + 0.25 * wrapped.f(x))

    def test_wrapped_module_keeps_the_dtype_of_the_map(self):
        class Widening(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float() * 2

        x = a_map(dtype=torch.bfloat16)
        assert IdentityStart(Widening())(x).dtype == torch.bfloat16

    def test_wrapped_module_that_returns_a_gate_is_noticed(self):
        with pytest.raises(AssertionError, match="must return the shape"):
            IdentityStart(nn.AdaptiveAvgPool2d(1))(a_map())


class TestCounts:
    @pytest.mark.parametrize("channels", [16, 64, 100, 2048])
    @pytest.mark.parametrize("spatial_dims", SPATIAL)
    def test_by_hand(self, channels, spatial_dims):
        h = channels // 16
        mlp, k = 2 * channels * h, 7**spatial_dims

        def count(module: nn.Module) -> int:
            return sum(p.numel() for p in module.parameters())

        d = {"spatial_dims": spatial_dims}
        assert count(SE(channels, **d)) == mlp + h + channels
        assert count(SE(channels, bias=False, **d)) == mlp
        assert count(ChannelAttention(channels, **d)) == mlp + h + channels
        assert count(SpatialAttention(channels, **d)) == 2 * k + 2
        assert count(SpatialAttention(channels, norm=False, **d)) == 2 * k + 1
        assert count(CBAM(channels, **d)) == mlp + h + channels + 2 * k + 2
        minimal = CBAM(channels, bias=False, spatial_norm=False, **d)
        assert count(minimal) == mlp + 2 * k + 1

    @pytest.mark.parametrize(
        ("attention", "options", "base", "total", "widths"),
        [
            ("se", {}, 11_689_512, 11_778_592, [64, 128, 256, 512] * 2),
            ("cbam", {}, 11_689_512, 11_779_392, [64, 128, 256, 512] * 2),
            ("se", {}, 25_557_032, 28_088_024, None),
            ("cbam", {}, 25_557_032, 28_089_624, None),
            ("se", {"bias": False}, 25_557_032, 28_071_976, None),
            ("se", {}, 25_028_904, 27_559_896, None),
            ("cbam", {}, 25_028_904, 27_561_496, None),
        ],
    )
    def test_published_totals(self, attention, options, base, total, widths):
        widths = widths or [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
        added = [build(attention, width, options=options) for width in widths]
        assert base + sum(p.numel() for a in added for p in a.parameters()) == total

    @pytest.mark.parametrize(
        ("channels", "options", "width"),
        [
            (64, {}, 4),
            (24, {}, 1),  # floor(1.5): the papers' rounding
            (8, {}, 1),
            (1, {}, 1),
            (64, {"divisor": 8}, 8),
            (24, {"divisor": 2}, 2),
            (200, {"divisor": 8}, 16),
            (64, {"reduction": 1}, 64),
            (64, {"hidden_channels": 7, "reduction": 2, "divisor": 8}, 7),
        ],
    )
    def test_hidden_width(self, channels, options, width):
        for kind in (SE, ChannelAttention):
            assert kind(channels, **options).fc1.out_channels == width
        assert CBAM(channels, **options).channel.fc2.in_channels == width

    @given(channels=st.integers(1, 4096), divisor=st.integers(2, 64), r=st.integers(1, 64))
    @example(channels=147, divisor=2, r=49)  # where C / r and C * (1 / r) differ
    @settings(max_examples=30, deadline=None)
    def test_hidden_width_with_divisor_is_timms(self, channels, divisor, r):
        with torch.device("meta"):
            ours = SE(channels, r, divisor=divisor)
            theirs = SEModule(channels, rd_ratio=1 / r, rd_divisor=divisor)
        assert ours.fc1.weight.shape == theirs.fc1.weight.shape


class TestAgainstOthers:
    @pytest.mark.parametrize("channels", [32, 64, 200])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_timm_se(self, channels, bias, training):
        theirs = SEModule(channels, bias=bias).train(training).double()
        ours = SE(channels, divisor=8, bias=bias, init="paper").train(training).double()
        ours.load_state_dict(theirs.state_dict())
        x = a_map(channels=channels).double()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("channels", [32, 64, 200])
    @pytest.mark.parametrize("kernel_size", [3, 7])
    @pytest.mark.parametrize("bias", [True, False])
    def test_timm_cbam(self, channels, kernel_size, bias):
        theirs = perturbed(
            CbamModule(channels, spatial_kernel_size=kernel_size, rd_divisor=8, mlp_bias=bias)
        ).double()
        ours = CBAM(
            channels,
            divisor=8,
            bias=bias,
            kernel_size=kernel_size,
            channel_order="mean_max",
            init="paper",
        ).double()
        ours.load_state_dict(theirs.state_dict())
        ours.spatial.conv[1].momentum = theirs.spatial.conv.bn.momentum
        x = a_map(channels=channels).double()
        close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
        for training in (True, True, False):  # twice: running statistics have to agree too
            close(ours.train(training)(x), theirs.train(training)(x))
            close(ours.channel(x), theirs.channel(x))
        for (key, a), (other_key, b) in zip(
            ours.state_dict().items(), theirs.state_dict().items(), strict=True
        ):
            assert key == other_key
            close(a, b)

    def test_torchvision_se(self):
        theirs = torchvision.ops.SqueezeExcitation(64, 4)
        ours = SE(64, init="paper")
        ours.load_state_dict(theirs.state_dict())
        x = a_map(channels=64)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def sigmoid(t: Tensor) -> Tensor:
    return 1 / (1 + (-t).exp())


def plain_pool(x: Tensor, kind: str) -> Tensor:
    flat = x.flatten(2)
    return {
        "avg": flat.sum(2) / flat.shape[2],
        "max": flat.sort(dim=2).values[:, :, -1],
        "lp": (flat * flat).sum(2).sqrt(),
        "lse": flat.exp().sum(2).log(),
    }[kind]


def plain_channel_map(gate: Any, x: Tensor, pools: list[str], factor: int) -> Tensor:
    w0, w1 = gate.fc1.weight.flatten(1), gate.fc2.weight.flatten(1)
    b0 = gate.fc1.bias if gate.fc1.bias is not None else 0
    b1 = gate.fc2.bias if gate.fc2.bias is not None else 0
    logits = sum((plain_pool(x, kind) @ w0.T + b0).clamp(min=0) @ w1.T + b1 for kind in pools)
    assert isinstance(logits, Tensor)
    return (factor * sigmoid(logits)).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def plain_spatial_map(gate: Any, x: Tensor, order: str, factor: int) -> Tensor:
    mean, highest = x.sum(1) / x.shape[1], x.sort(dim=1).values[:, -1]
    described = torch.stack([highest, mean] if order == "max_mean" else [mean, highest], 1)
    weight = gate.conv.conv.weight
    k, space = weight.shape[-1], x.shape[2:]
    padded = x.new_zeros(x.shape[0], 2, *[n + k - 1 for n in space])
    padded[(..., *[slice(k // 2, k // 2 + n) for n in space])] = described
    out = x.new_zeros(x.shape[0], *space)
    for shift in itertools.product(range(k), repeat=len(space)):
        window = padded[(..., *[slice(s, s + n) for s, n in zip(shift, space, strict=True)])]
        taps = weight[(0, slice(None), *shift)].reshape(1, 2, *[1] * len(space))
        out = out + (window * taps).sum(1)
    if gate.conv.conv.bias is not None:
        out = out + gate.conv.conv.bias
    else:
        bn = gate.conv.bn
        if gate.training:
            mu, var = out.mean(), ((out - out.mean()) ** 2).mean()
        else:
            mu, var = bn.running_mean, bn.running_var
        out = (out - mu) / (var + 1e-5).sqrt() * bn.weight + bn.bias
    return (factor * sigmoid(out)).unsqueeze(1)


class TestEquations:
    """The papers' equations once more, without any of torch.nn's functions."""

    @pytest.mark.parametrize("init", ["identity", "paper"])
    @pytest.mark.parametrize("spatial_dims", SPATIAL)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("kind", ["avg", "max", "lp", "lse"])
    def test_se(self, init, spatial_dims, bias, kind):
        se = SE(C, bias=bias, pool=kind, spatial_dims=spatial_dims, init=init)
        perturbed(se.double())
        x = torch.randn(2, C, *SPATIAL[spatial_dims], dtype=torch.float64)
        factor = 2 if init == "identity" else 1
        torch.testing.assert_close(se(x), x * plain_channel_map(se, x, [kind], factor))

    @pytest.mark.parametrize("init", ["identity", "paper"])
    @pytest.mark.parametrize("spatial_dims", SPATIAL)
    @pytest.mark.parametrize("minimal", [False, True])
    @pytest.mark.parametrize("order", ["channel_first", "spatial_first", "parallel"])
    @pytest.mark.parametrize("training", [True, False])
    def test_cbam(self, init, spatial_dims, minimal, order, training):
        options = {"pools": ("avg", "lse", "max"), "kernel_size": 3} | (MINIMAL if minimal else {})
        cbam = CBAM(C, order=order, spatial_dims=spatial_dims, init=init, **options)
        perturbed(cbam.double()).train(training)
        x = torch.randn(2, C, *SPATIAL[spatial_dims], dtype=torch.float64)
        channel = functools.partial(
            plain_channel_map,
            cbam.channel,
            pools=["max", "avg", "lse"],
            factor=2 if init == "identity" else 1,
        )
        spatial = functools.partial(
            plain_spatial_map,
            cbam.spatial,
            order="mean_max" if minimal else "max_mean",
            factor=2 if init == "identity" else 1,
        )
        if order == "parallel":
            expected = x * channel(x=x) * spatial(x=x)
        else:
            first, second = (channel, spatial) if order == "channel_first" else (spatial, channel)
            refined = x * first(x=x)
            expected = refined * second(x=refined)
        torch.testing.assert_close(cbam(x), expected)

    def test_halves_alone_are_the_halves_of_cbam(self):
        cbam = perturbed(CBAM(C, init="paper")).eval()
        cam, sam = ChannelAttention(C, init="paper"), SpatialAttention(C, init="paper").eval()
        cam.load_state_dict(cbam.channel.state_dict())
        sam.load_state_dict(cbam.spatial.state_dict())
        x = a_map()
        assert same_bits(plainly(sam, plainly(cam, x)), plainly(cbam, x))

    def test_defaults_are_the_papers(self):
        cbam = CBAM(64)
        assert cbam.order == "channel_first"
        assert cbam.channel.pools == ["avg", "max"]
        assert cbam.channel.fc1.bias is not None
        conv, bn = cbam.spatial.conv
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        assert (conv.kernel_size, conv.padding, conv.bias) == ((7, 7), (3, 3), None)
        assert (bn.eps, bn.momentum) == (1e-5, 0.01)
        assert cbam.spatial.channel_order == "max_mean"
        assert SE(64).pools == ["avg"]
        assert not any(getattr(module, "inplace", False) for module in cbam.modules())

    @pytest.mark.parametrize("spatial_dims", [1, 2, 3])
    def test_without_a_squeeze_each_position_is_for_itself(self, spatial_dims):
        whole = perturbed(SE(C, pool="none", spatial_dims=spatial_dims)).double()
        x = a_map(spatial_dims).double()
        positions = x.flatten(2).mT.reshape(-1, C, *[1] * spatial_dims)
        alone = whole(positions).reshape(len(x), -1, C).mT.reshape(x.shape)
        torch.testing.assert_close(whole(x), alone, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(whole(x), x)
        count = [sum(p.numel() for p in each.parameters()) for each in (whole, SE(C))]
        assert count[0] == count[1]

    def test_pools(self):
        x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
        for kind in ("avg", "max", "lp", "lse"):
            got = pool(x, kind, [2, 3])
            assert got.shape == (2, 3, 1, 1)
            torch.testing.assert_close(got.flatten(1), plain_pool(x, kind))
        theirs = nn.functional.lp_pool2d(x, 2, (4, 5))
        torch.testing.assert_close(pool(x, "lp", [2, 3]), theirs)
        torch.testing.assert_close(
            pool(x + 1e5, "lse", [2, 3]), pool(x, "lse", [2, 3]) + 1e5, rtol=1e-12, atol=0
        )


class TestCitizenship:
    """What a module has to put up with: copies, tracers, formats, autocast."""

    @over_variants
    @pytest.mark.parametrize(
        "remake", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_copies(self, variant, remake: Callable[[nn.Module], nn.Module]):
        attention = perturbed(made(variant)).eval()
        x = a_map()
        assert same_bits(remake(attention)(x), attention(x))

    @over_variants
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_torchscript_and_fx(self, variant, training):
        attention = perturbed(made(variant)).train(training)
        x = a_map()
        expected = plainly(copy.deepcopy(attention), x)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(copy.deepcopy(attention)), buffer)
        buffer.seek(0)
        assert same_bits(torch.jit.load(buffer)(x), expected)
        assert same_bits(torch.fx.symbolic_trace(copy.deepcopy(attention))(x), expected)

    @pytest.mark.parametrize("variant", ["se", "cam-all-pools", "sam", "cbam", "cbam-parallel"])
    def test_export_and_compile(self, variant):
        attention = perturbed(made(variant)).eval()
        x = a_map()
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(attention, (x,), dynamic_shapes=({0: batch},)).module()
        for inputs in (x, torch.cat([x, x])):
            torch.testing.assert_close(exported(inputs), attention(inputs))
        compiled = torch.compile(attention, fullgraph=True, backend="eager")
        assert same_bits(compiled(x), plainly(attention, x))
        torch.compiler.reset()

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_identity_start_wrapper_is_a_citizen_too(self):
        wrapped = IdentityStart(nn.Conv2d(C, C, 1))
        nn.init.constant_(wrapped.alpha, 0.5)
        x = a_map()
        expected = wrapped(x)
        for other in (
            copy.deepcopy(wrapped),
            pickle.loads(pickle.dumps(wrapped)),
            torch.jit.script(wrapped),
            torch.fx.symbolic_trace(wrapped),
            torch.export.export(wrapped, (x,)).module(),
        ):
            torch.testing.assert_close(other(x), expected)

    @over_variants
    def test_channels_last(self, variant):
        attention = perturbed(made(variant)).eval()
        x = a_map().contiguous(memory_format=torch.channels_last)
        y = attention.to(memory_format=torch.channels_last)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, attention(x.contiguous()))

    @over_variants
    def test_autocast_keeps_dtype_and_identity(self, variant):
        attention = made(variant)
        for dtype in (torch.bfloat16, torch.float32):
            x = a_map(dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16):
                assert same_bits(attention(x), x)

    @over_variants
    def test_forward_draws_no_random_numbers(self, variant):
        attention, x = made(variant), a_map()
        state = torch.get_rng_state()
        attention(x)
        assert torch.equal(torch.get_rng_state(), state)

    @over_variants
    def test_no_dead_parameters_after_the_first_step(self, variant):
        attention = perturbed(made(variant))
        attention(a_map()).square().sum().backward()
        for name, parameter in attention.named_parameters():
            assert parameter.grad is not None, name

    def test_state_loads_strictly_from_its_like(self):
        for variant in VARIANTS:
            source, target = perturbed(made(variant)), made(variant)
            target.load_state_dict(source.state_dict())
            x = a_map()
            assert same_bits(target.eval()(x), source.eval()(x)), variant

    def test_representation_shows_the_options_without_a_child(self):
        assert "pools=avg, init=paper" in repr(SE(8, init="paper"))
        text = repr(CBAM(8, order="parallel", channel_order="mean_max"))
        assert "order=parallel" in text
        assert "channel_order=mean_max, init=identity" in text


WHOLE = "whole number, 1 or more"
NOT_WHOLE = (0, -1, 1.0, 2.5, True, "3", None)
REFUSED = [
    *[(SE, {"reduction": v}, "reduction", WHOLE) for v in NOT_WHOLE],
    *[(SE, {"divisor": v}, "divisor", WHOLE) for v in NOT_WHOLE],
    *[(SE, {"hidden_channels": v}, "hidden_channels", WHOLE) for v in NOT_WHOLE[:-1]],
    *[(SE, {"spatial_dims": v}, "spatial_dims", "1, 2, 3") for v in (0, 4, 2.0, True, "2", None)],
    *[(SE, {"pool": v}, "pool", "'avg', 'max', 'lp', 'lse'") for v in ("mean", None, ["avg"])],
    *[(SE, {"init": v}, "init", "'identity', 'paper'") for v in ("zero", None, True)],
    *[(SE, {"bias": v}, "bias", "True or False") for v in ("false", None, 0)],
    *[
        (ChannelAttention, {"pools": v}, "pools", "'avg', 'max', 'lp', 'lse'")
        for v in ("avg", (), ("avg", "mx"), None, [1], {"avg": 1})
    ],
    *[(ChannelAttention, {"reduction": v}, "reduction", WHOLE) for v in (0, 1.5)],
    *[(ChannelAttention, {"spatial_dims": v}, "spatial_dims", "1, 2, 3") for v in (0, 4)],
    *[
        (SpatialAttention, {"kernel_size": v}, "kernel_size", "odd whole number, 1 or more")
        for v in (0, -1, 2, 8, 7.0, True, (7, 7), None)
    ],
    *[(SpatialAttention, {"norm": v}, "norm", "True or False") for v in ("bn", None, 1)],
    *[
        (kind, {"channel_order": v}, "channel_order", "'max_mean', 'mean_max'")
        for v in ("mean", None)
        for kind in (SpatialAttention, CBAM)
    ],
    (SpatialAttention, {"spatial_dims": 4}, "spatial_dims", "1, 2, 3"),
    (SpatialAttention, {"init": "ones"}, "init", "'identity', 'paper'"),
    *[
        (CBAM, {"order": v}, "order", "'channel_first', 'spatial_first', 'parallel'")
        for v in ("channel", None, 0)
    ],
    (CBAM, {"spatial_norm": "no"}, "spatial_norm", "True or False"),
    (CBAM, {"kernel_size": 4}, "kernel_size", "odd whole number"),
    (CBAM, {"hidden_channels": 0}, "hidden_channels", WHOLE),
    (CBAM, {"init": "none"}, "init", "'identity', 'paper'"),
]


class TestRefusals:
    @pytest.mark.parametrize(("kind", "options", "name", "accepted"), REFUSED)
    def test_impossible_values(self, kind, options, name, accepted):
        with pytest.raises(SurgeryError) as refusal:
            kind(64, **options)
        message = str(refusal.value)
        value = options[name]
        culprits = [value, *value] if isinstance(value, list | tuple) else [value]
        assert message.startswith(tuple(f"{name}={culprit!r}: must be" for culprit in culprits))
        assert accepted in message

    @pytest.mark.parametrize("kind", [SE, ChannelAttention, SpatialAttention, CBAM])
    @pytest.mark.parametrize("channels", NOT_WHOLE)
    def test_impossible_channels(self, kind, channels):
        with pytest.raises(SurgeryError, match=r"channels=.*must be a whole number, 1 or more"):
            kind(channels)

    def test_typing_error_gets_a_suggestion(self):
        with pytest.raises(SurgeryError, match="did you mean 'channel_first'"):
            CBAM(64, order="chanel_first")


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def doubling(channels: int, *, times: int = 2) -> nn.Module:
    return nn.Conv2d(channels, channels, times * 2 + 1, padding=times)


@pytest.mark.usefixtures("scratch_registry")
class TestRegistry:
    def test_what_there_is(self):
        assert available() == sorted(available())
        assert get_builder("se") is SE
        assert get_builder("cbam") is CBAM
        assert get_builder("cam") is ChannelAttention
        assert get_builder("sam") is SpatialAttention

    def test_register_records_and_returns_the_builder(self):
        assert register("aaa")(doubling) is doubling
        assert available()[0] == "aaa"
        assert get_builder("aaa") is doubling

    def test_duplicate_is_refused_and_changes_nothing(self):
        with pytest.raises(SurgeryError, match="'se' is registered already"):
            register("se")(doubling)
        assert get_builder("se") is SE

    @pytest.mark.parametrize("name", ["", None, 3, SE])
    def test_name_must_be_a_word(self, name):
        with pytest.raises(SurgeryError, match="non-empty string"):
            register(name)

    def test_unknown_name(self):
        with pytest.raises(SurgeryError) as refusal:
            get_builder("cbma")
        assert "'cbma'; did you mean 'cbam'?" in str(refusal.value)
        assert "'bam', 'cam', 'cbam', " in str(refusal.value)

    def test_callable_passes_through(self):
        part = functools.partial(SE, reduction=8)
        for builder in (doubling, part, SE, nn.Conv2d):
            assert get_builder(builder) is builder
        module = build(part, 64, options={"pool": "max"})
        assert isinstance(module, SE)
        assert (module.fc1.out_channels, module.pools) == (8, ["max"])

    @pytest.mark.parametrize("attention", [None, 3, ["se"], {"*": "se"}, SE(8)])
    def test_neither_name_nor_builder(self, attention):
        message = r"one of 'adapter', 'bam'.*or a callable .*not an instance of"
        with pytest.raises(SurgeryError, match=message):
            get_builder(attention)

    def test_options_are_refused_by_name(self):
        with pytest.raises(SurgeryError) as refusal:
            check_options("cbam", {"reduction": 8, "kernel_sise": 3})
        message = str(refusal.value)
        assert "'cbam' has no option 'kernel_sise'" in message
        assert "did you mean 'kernel_size'?" in message
        assert "reduction, hidden_channels, divisor, bias, pools, kernel_size" in message
        assert "init" not in message
        with pytest.raises(SurgeryError, match=r"'doubling' has no option 'reduction'.*times"):
            build(doubling, 8, options={"reduction": 2})

    @pytest.mark.parametrize("option", ["channels", "spatial_dims", "init"])
    @pytest.mark.parametrize("attention", ["se", "sam", doubling, lambda channels, **rest: None])
    def test_the_engines_keywords_are_no_options(self, attention, option):
        with pytest.raises(SurgeryError, match=f"'{option}' is no option"):
            check_options(attention, {option: 2})

    def test_builders_that_take_anything(self):
        def anything(width: int, **rest: Any) -> nn.Module:
            assert rest == {"one": 1}  # neither init nor spatial_dims
            return nn.Conv2d(width, width, 1)

        check_options(anything, {"one": 1})
        with pytest.raises(SurgeryError, match="has no option 'width'"):
            check_options(anything, {"width": 1})
        assert isinstance(build(anything, 4, init="paper", options={"one": 1}), nn.Conv2d)

    def test_builder_without_a_signature(self):
        def opaque(channels: int) -> nn.Module:
            return nn.Identity()

        opaque.__signature__ = "hidden"  # type: ignore[attr-defined]
        check_options(opaque, {"anything": 1})
        assert isinstance(build(opaque, 4, init="paper"), nn.Identity)

    def test_engine_keywords_reach_those_who_name_them(self):
        def knows_both(channels: int, *, spatial_dims: int, init: str) -> nn.Module:
            module = nn.Identity()
            module.seen = (channels, spatial_dims, init)  # type: ignore[assignment]
            return module

        def knows_dims(channels: int, spatial_dims: int) -> nn.Module:
            return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1](channels, channels, 1)

        assert build(knows_both, 5, spatial_dims=3, init="paper").seen == (5, 3, "paper")
        assert build(knows_both, 5).seen == (5, 2, "identity")
        wrapped = build(knows_dims, 5, spatial_dims=3)
        assert isinstance(wrapped, IdentityStart)
        assert isinstance(wrapped.f, nn.Conv3d)
        assert isinstance(build(knows_dims, 5, spatial_dims=1, init="paper"), nn.Conv1d)

    def test_foreign_module_starts_as_the_identity(self):
        x = a_map()
        attention = build(SEModule, C, options={"rd_ratio": 0.25})
        assert torch.equal(attention(x), x)
        assert not torch.equal(build(SEModule, C, init="paper")(x), x)

    def test_a_module_that_cannot_be_copied_is_tried_all_the_same(self):
        class Counting(nn.Module):
            def __init__(self, channels: int):
                super().__init__()
                self.norm = nn.BatchNorm2d(channels)
                self.lock = threading.Lock()
                self.calls = 0

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                return self.norm(x).sigmoid() * x

        x, attention = a_map(), build(Counting, C)
        assert isinstance(attention, IdentityStart)
        assert torch.equal(attention.eval()(x), x)
        assert isinstance(attention.f, Counting)
        assert (attention.f.calls, attention.f.norm.num_batches_tracked) == (1, 0)

    def test_failing_builder(self):
        def picky(channels: int, groups: int = 3) -> nn.Module:
            return nn.Conv2d(channels, channels, 1, groups=groups)

        with pytest.raises(SurgeryError) as refusal:
            build(picky, 8, options={"groups": 5})
        message = str(refusal.value)
        assert "picky" in message
        assert "channels=8" in message
        assert "groups=5" in message
        assert isinstance(refusal.value.__cause__, ValueError)
        with pytest.raises(SurgeryError, match="TypeError") as refusal:
            build(lambda: nn.Identity(), 8)
        assert isinstance(refusal.value.__cause__, TypeError)
        with pytest.raises(SurgeryError, match=r"'cbam' with channels=8.*kernel_size=4: must be"):
            build("cbam", 8, options={"kernel_size": 4})

    def test_builder_of_something_else(self):
        with pytest.raises(SurgeryError, match=r"must be an nn\.Module, not int"):
            build(lambda channels: channels, 8)

    def test_builds_own_arguments(self):
        for wrong, message in [
            ({"init": "zero"}, "init='zero': must be one of 'identity', 'paper'"),
            ({"spatial_dims": 4}, "spatial_dims=4: must be one of 1, 2, 3"),
        ]:
            with pytest.raises(SurgeryError, match=message):
                build(doubling, 8, **wrong)
        with pytest.raises(SurgeryError, match="channels=0: must be a whole number"):
            build(doubling, 0)

    def test_options_are_left_as_they_are(self):
        options = {"reduction": 8}
        build("se", 64, options=options)
        assert options == {"reduction": 8}
