"""The catalogue: identity starts, refusals, the list; and that our own are good PyTorch modules."""

import copy
import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import timm
import torch
import torchvision
from test_attention import DTYPES, SPATIAL, C, a_map, one_thread, perturbed, same_bits, seeded
from test_attention import scratch_registry as scratch_registry
from test_surgery import fingerprint
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError, available
from attn_surgery.attention import (
    BAM,
    GCT,
    SCSE,
    SGE,
    SRM,
    Adapter,
    Scale,
    SimAM,
    TripletAttention,
    build,
    entry,
)
from attn_surgery.attention.construction import registry
from attn_surgery.attention.construction.identity_start import IdentityStart
from attn_surgery.reporting.catalogue import MAP, Listing, catalogue, listing_table

__all__ = ["one_thread", "seeded"]

OWN = "adapter bam cam cbam gct sam scale scse se sge simam srm triplet".split()
TIMM = "ceca coord eca ecam ela ese gc gca ge lambda lcbam nl scoord sk splat strip".split()
BROKEN = "ge"  # in timm 1.0.31, on which the tests are pinned: a dict unpacked as positions
# They do not scale the map: their x - f(x) is below zero where x is -0.0, which becomes 0.0.
NOT_A_SCALE = {"gca", "lambda", "nl", "sk", "splat"}
# Added to all logits of a softmax: of gc's and gca's over positions, and of nl's.
WITHOUT_EFFECT = {"conv_attn.bias", "p.bias"}
# No map smaller than the 9 x 9 kernel of lambda's Conv3d: for those, oneDNN's bfloat16 gradient of
# the weight reads memory that nothing was written to (torch 2.14.1 on a CPU with avx512_bf16).
NO_SMALLER_THAN_KERNELS = {**SPATIAL, 2: (9, 10)}
WORKING = [(name, d) for name in (*OWN, *TIMM) if name != BROKEN for d in entry(name).dims or ()]


def test_what_there_is():
    assert available() == sorted([*OWN, *TIMM])
    assert all(entry(name).paper for name in available())


@pytest.mark.parametrize("name", [name for name in available() if name != BROKEN])
def test_no_parameter_has_no_dimension(name: str) -> None:
    """FSDP2 takes none."""
    assert all(each.dim() for each in build(name, C).parameters())


class TestIdentityStart:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("name", "spatial_dims"), WORKING)
    def test_same_bits_gradient_and_random_state(
        self, name: str, spatial_dims: int, dtype: torch.dtype, training: bool
    ):
        attention = build(name, C, spatial_dims=spatial_dims).to(dtype).train(training)
        x = a_map(spatial_dims, dtype, spatial=NO_SMALLER_THAN_KERNELS)
        before, state = x.clone(), torch.get_rng_state()
        y = attention(x)
        assert torch.equal(torch.get_rng_state(), state)
        assert same_bits(x, before), "the input was changed in place"
        assert torch.equal(y, x)
        assert y.stride() == x.stride()
        assert same_bits(y, x) or name in NOT_A_SCALE
        y.backward(torch.randn_like(y))
        gradients = [p.grad for p in attention.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.count_nonzero() for gradient in gradients)

    @pytest.mark.parametrize(("name", "spatial_dims"), WORKING)
    def test_once_alpha_has_moved_everything_learns(self, name: str, spatial_dims: int):
        dead = {key for key, _ in build(name, 64, spatial_dims=spatial_dims).named_parameters()}
        for _ in range(5):  # the few hidden units of one may all be off
            attention = perturbed(build(name, 64, spatial_dims=spatial_dims)).eval()
            x = a_map(spatial_dims, channels=64).clamp(-2, 2)
            attention(x).backward(torch.randn_like(x))
            dead -= {k for k, p in attention.named_parameters() if p.grad.count_nonzero()}
        assert {key.removeprefix("f.") for key in dead} <= WITHOUT_EFFECT

    @pytest.mark.parametrize(("name", "spatial_dims"), WORKING)
    def test_paper_start_is_what_the_builder_builds(self, name: str, spatial_dims: int):
        attention = build(name, C, spatial_dims=spatial_dims, init="paper")
        assert not isinstance(attention, IdentityStart)
        x = a_map(spatial_dims)
        assert torch.equal(attention(x), x) == (name in {"gct", "nl"})

    @pytest.mark.parametrize("name", [name for name, d in WORKING if d == 2])
    def test_a_host_is_undisturbed(self, name: str):
        host = timm.create_model("test_resnet")
        host.train()
        x = torch.randn(2, 3, 64, 64)
        expected, before = copy.deepcopy(host)(x), fingerprint(host)
        attn_surgery.apply(host, name)
        assert attn_surgery.inserted(host)
        assert torch.equal(host(x), expected)
        attn_surgery.remove(host)
        assert fingerprint(host) == before


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bam": ("bam", {}),
    "bam-product": ("bam", {"combine": "product", "dilation": 2}),
    "scse": ("scse", {}),
    "scse-max": ("scse", {"combine": "max", "bias": False}),
    "simam": ("simam", {}),
    "simam-unbiased": ("simam", {"unbiased": True, "lam": 0.01}),
    "triplet": ("triplet", {}),
    "triplet-of-two": ("triplet", {"spatial": False}),
    "srm": ("srm", {}),
    "gct": ("gct", {}),
    "sge": ("sge", {}),
    "sge-in-four": ("sge", {"groups": 4}),
    "scale": ("scale", {}),
    "scale-alone": ("scale", {"shift": False}),
    "adapter": ("adapter", {}),
    "adapter-narrow": ("adapter", {"reduction": 999}),
    "adapter-channel": ("adapter", {"kind": "channel"}),
    "adapter-channel-wide": ("adapter", {"kind": "channel", "kernel_size": 5}),
}
over_variants = pytest.mark.parametrize("variant", VARIANTS)
over_inits = pytest.mark.parametrize("init", ["identity", "paper"])


def made(variant: str, *, spatial_dims: int = 2, init: str = "identity") -> nn.Module:
    name, options = VARIANTS[variant]
    return build(name, C, spatial_dims=spatial_dims, init=init, options=options)


@pytest.mark.parametrize("variant", [each for each in VARIANTS if "simam" not in each])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_every_variant_of_ours_starts_as_the_identity(variant: str, dtype: Any, last: bool):
    """But for ``simam``, which is wrapped."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = a_map(dtype=dtype).contiguous(memory_format=layout)
    for attention in (made(variant).to(dtype), made(variant).to(dtype).eval()):
        y = attention(x)
        assert same_bits(y, x)
        assert y.stride() == x.stride()


@over_variants
@over_inits
class TestCitizenship:
    """What a module has to put up with: copies, tracers, formats, autocast."""

    @pytest.mark.parametrize(
        "remake", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_copies(self, variant: str, init: str, remake: Callable[[nn.Module], nn.Module]):
        attention = perturbed(made(variant, init=init)).eval()
        x = a_map()
        assert same_bits(remake(attention)(x), attention(x))

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_torchscript_and_fx(self, variant: str, init: str, training: bool):
        for spatial_dims in entry(VARIANTS[variant][0]).dims or ():
            attention = perturbed(made(variant, init=init, spatial_dims=spatial_dims))
            attention.train(training)
            x = a_map(spatial_dims)
            expected = copy.deepcopy(attention)(x)
            buffer = io.BytesIO()
            torch.jit.save(torch.jit.script(copy.deepcopy(attention)), buffer)
            buffer.seek(0)
            assert same_bits(torch.jit.load(buffer)(x), expected)
            assert same_bits(torch.fx.symbolic_trace(copy.deepcopy(attention))(x), expected)

    @pytest.mark.sampled(3)
    def test_export_and_compile(self, variant: str, init: str):
        attention = perturbed(made(variant, init=init)).eval()
        x = a_map()
        batch, height = torch.export.Dim("batch", min=2), torch.export.Dim("height", min=2)
        dynamic = ({0: batch, 2: height},)
        exported = torch.export.export(attention, (x,), dynamic_shapes=dynamic).module()
        for inputs in (x, torch.cat([x, x]), x.repeat(1, 1, 2, 1)):
            torch.testing.assert_close(exported(inputs), attention(inputs))
        compiled = torch.compile(attention, fullgraph=True, backend="eager")
        assert same_bits(compiled(x), attention(x))
        torch.compiler.reset()

    def test_channels_last(self, variant: str, init: str):
        attention = perturbed(made(variant, init=init)).eval()
        x = a_map().contiguous(memory_format=torch.channels_last)
        y = attention.to(memory_format=torch.channels_last)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, attention(x.contiguous()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, variant: str, init: str, dtype: torch.dtype):
        attention = perturbed(made(variant, init=init)).eval()
        x = torch.randn(3, C, 5, 6)
        expected = attention(x)
        y = attention.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert (y.float() - expected).norm() < 0.05 * expected.norm()
        large = torch.full((2, C, 56, 56), 40.0, dtype=dtype)
        assert attention(large * torch.randn_like(large)).isfinite().all()

    def test_autocast_keeps_dtype(self, variant: str, init: str):
        attention = made(variant, init=init)
        for dtype in (torch.bfloat16, torch.float32):
            x = a_map(dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16):
                y = attention(x)
            assert same_bits(y, x) or init == "paper"
            assert y.dtype == dtype

    def test_state_loads_strictly_from_its_like(self, variant: str, init: str):
        source, target = perturbed(made(variant, init=init)).eval(), made(variant, init=init)
        target.load_state_dict(source.state_dict())
        x = a_map()
        assert same_bits(target.eval()(x), source(x))

    def test_gradients_are_those_of_finite_differences(self, variant: str, init: str):
        attention = perturbed(made(variant, init=init)).double().eval()
        x = torch.randn(1, C, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(attention, (x,), fast_mode=True)

    def test_map_of_zeros_and_of_one_position(self, variant: str, init: str):
        attention = perturbed(made(variant, init=init)).eval()
        if "unbiased" not in variant:
            single = torch.randn(2, C, 1, 1)
            assert attention(single).isfinite().all()
        x = torch.zeros(2, C, 3, 3, requires_grad=True)
        attention(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


WHOLE = "whole number, 1 or more"
NOT_WHOLE = (0, -1, 1.0, True, "3", None)
NOT_POSITIVE = (0, -1e-4, True, "1e-4", None, float("nan"), float("inf"))
PLAIN = (Scale, Adapter)
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    *[(BAM, {name: v}, WHOLE) for v in NOT_WHOLE for name in ("reduction", "dilation")],
    *[(BAM, {"combine": v}, "'sum', 'product'") for v in ("add", None)],
    *[(SCSE, {"reduction": v}, WHOLE) for v in NOT_WHOLE],
    *[(SCSE, {"combine": v}, "'add', 'max'") for v in ("sum", None)],
    *[(SCSE, {"bias": v}, "True or False") for v in ("no", None, 1)],
    *[(SimAM, {"lam": v}, "a positive number") for v in NOT_POSITIVE],
    *[(SimAM, {"unbiased": v}, "True or False") for v in (1, None)],
    *[(TripletAttention, {"kernel_size": v}, f"odd {WHOLE}") for v in (*NOT_WHOLE, 4)],
    *[(TripletAttention, {"spatial": v}, "True or False") for v in (1, None)],
    *[(GCT, {"epsilon": v}, "a positive number") for v in NOT_POSITIVE],
    *[(SGE, {"groups": v}, WHOLE) for v in NOT_WHOLE[:-1]],
    (SGE, {"groups": 7}, "must divide the 64 channels"),
    *[(SGE, {"epsilon": v}, "a positive number") for v in NOT_POSITIVE],
    *[(Scale, {"shift": v}, "True or False") for v in (1, "no", None)],
    *[(Adapter, {"reduction": v}, WHOLE) for v in NOT_WHOLE],
    *[(Adapter, {"kernel_size": v}, f"odd {WHOLE}") for v in (*NOT_WHOLE, 4)],
    *[(Adapter, {"kind": v}, "'bottleneck', 'channel'") for v in ("matrix", None)],
    *[(kind, {"init": v}, "'identity', 'paper'") for v in ("zero", None) for kind in PLAIN],
    *[
        (kind, {"spatial_dims": v}, "1, 2, 3")
        for v in (0, 4, 2.0, "2", None)
        for kind in (BAM, SCSE, SimAM, SRM, GCT, SGE, *PLAIN)
    ],
]


class TestOptions:
    @pytest.mark.parametrize(("kind", "options", "accepted"), REFUSED)
    def test_impossible_values(self, kind: Any, options: dict[str, Any], accepted: str):
        with pytest.raises(SurgeryError) as refusal:
            kind(64, **options)
        ((name, value),) = options.items()
        assert str(refusal.value).startswith(f"{name}={value!r}: must ")
        assert accepted in str(refusal.value)

    @pytest.mark.parametrize("kind", [BAM, SCSE, SimAM, TripletAttention, SRM, GCT, SGE, *PLAIN])
    @pytest.mark.parametrize("channels", NOT_WHOLE)
    def test_impossible_channels(self, kind: Any, channels: Any):
        with pytest.raises(SurgeryError, match=r"channels=.*must be a whole number, 1 or more"):
            kind(channels)

    @pytest.mark.parametrize("name", ["triplet", *TIMM])
    @pytest.mark.parametrize("spatial_dims", [1, 3])
    def test_other_dimensions_are_refused(self, name: str, spatial_dims: int):
        message = f"attention '{name}' works on 2-D maps, not on {spatial_dims}-D ones"
        with pytest.raises(SurgeryError, match=message):
            build(name, C, spatial_dims=spatial_dims)

    def test_groups_of_sge_where_64_does_not_divide(self):
        groups = {c: build("sge", c, init="paper").get_parameter("weight").shape[1]
                  for c in (1, 24, 64, 96, 160, 320)}  # fmt: skip
        assert groups == {1: 1, 24: 8, 64: 64, 96: 32, 160: 32, 320: 64}

    def test_representation_shows_the_options(self):
        for variant, shown in [
            ("bam-product", "combine=product"),
            ("scse-max", "combine=max"),
            ("simam-unbiased", "lam=0.01, unbiased=True"),
            ("gct", "32, epsilon=1e-05"),
            ("sge-in-four", "groups=4, epsilon=1e-05"),
            ("scale-alone", "32, shift=False"),
        ]:
            assert shown in repr(made(variant))


class Zero(nn.Module):
    """A residual that starts at zero; the map's memory layout is what ``laid_out`` makes of it."""

    def __init__(self, laid_out: Callable[[Tensor], Tensor]):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.laid_out = laid_out

    def forward(self, x: Tensor) -> Tensor:
        x = self.laid_out(x)
        return x + self.scale * x.tanh()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kept": lambda x: x,
    "channels first": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("last", [False, True])
def test_what_starts_as_the_identity_is_wrapped_only_to_keep_the_layout(layout: str, last: bool):
    """Another layout is another kernel in the next convolution, and another last bit."""
    x = a_map().contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    attention = build(lambda channels: Zero(LAYOUTS[layout]), C)
    assert isinstance(attention, IdentityStart) == (layout != "kept")
    y = attention(x)
    assert torch.equal(y, x)
    assert y.stride() == x.stride()
    y.square().sum().backward()
    (gradient,) = [p.grad for name, p in attention.named_parameters() if name.endswith("scale")]
    assert gradient is not None
    assert gradient != 0


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).sigmoid()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Whole(nn.Module):
    """Only takes maps of one size, as attentions with position embeddings do."""

    def __init__(self, channels: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(channels, 57, 57))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embedding


def failing(channels: int) -> nn.Module:
    raise ArithmeticError("no attention today")


BROKEN_BUILDERS: dict[str, tuple[Any, str]] = {
    "fails when built": (failing, "ArithmeticError: no attention today"),
    "fails when called": (Whole, r"fails on a map \(2, 64, 14, 14\): RuntimeError: The size"),
    "returns a gate": (lambda c: Gate(), r"maps \(2, 64, 8, 8\) to \(2, 64, 1, 1\), not to the"),
    "halves the map": (lambda c: nn.MaxPool2d(2), r"maps \(2, 64, 8, 8\) to \(2, 64, 4, 4\)"),
    "changes channels": (lambda c: nn.Conv2d(c, 8, 1), r"to \(2, 8, 8, 8\), not to the same shape"),
    "returns a pair": (lambda c: Pair(), "returns a tuple, not a map"),
    "is no module": (lambda c: torch.sigmoid, "must be an nn.Module, not "),
    "takes one option more": (lambda c, width: Gate(), "missing 1 required positional argument"),
}


@pytest.mark.usefixtures("scratch_registry")
class TestBroken:
    @pytest.fixture
    def host(self) -> nn.Module:
        return torchvision.models.resnet18()

    def refused(self, host: nn.Module, attention: Any, message: str, **options: Any) -> None:
        before, keys = fingerprint(host), list(host.state_dict())
        # plan does not call a builder that has no name
        verbs: list[Any] = [attn_surgery.apply]
        if not callable(attention):
            verbs.append(attn_surgery.plan)
        for verb in verbs:
            with pytest.raises(SurgeryError, match=message):
                verb(host, attention, **options)
            assert fingerprint(host) == before
        assert list(host.state_dict()) == keys
        assert not attn_surgery.inserted(host)

    def test_timms_ge(self, host: nn.Module):
        origin = r"'ge' \(timm\.layers\.gather_excite\.GatherExcite\)"
        self.refused(host, "ge", f"cannot build attention {origin} .*TypeError: ConvMlp")

    def test_timms_ge_last_of_several(self, host: nn.Module):
        self.refused(host, {"layer1.*": "se", "layer4.1": "ge"}, "cannot build attention 'ge'")

    def test_what_works_of_timms_ge(self, host: nn.Module):
        """A fault is found by trying: without its MLP it can be built."""
        attn_surgery.apply(host, "ge", use_mlp=False)
        assert len(attn_surgery.inserted(host)) == 8

    @pytest.mark.parametrize("kind", BROKEN_BUILDERS)
    @pytest.mark.parametrize("registered", [True, False])
    def test_an_attention_of_a_users(self, host: nn.Module, kind: str, registered: bool):
        builder, message = BROKEN_BUILDERS[kind]
        attn_surgery.register("theirs")(builder)
        attention: Any = "theirs" if registered else builder
        self.refused(host, attention, message)

    @pytest.mark.parametrize("kind", BROKEN_BUILDERS)
    def test_the_list_tells(self, kind: str, monkeypatch: pytest.MonkeyPatch):
        builder, message = BROKEN_BUILDERS[kind]
        monkeypatch.setattr(registry, "_entries", {})
        attn_surgery.register("theirs", paper="Nobody 2026")(builder)
        (listed,) = catalogue()
        assert (listed.name, listed.paper, listed.dims) == ("theirs", "Nobody 2026", ())
        assert (listed.params, listed.macs, listed.elementwise_ops) == (None, None, None)
        assert re.search(message.replace("64", "256"), listed.fault)
        assert not listed.fault.startswith(("SurgeryError", "cannot build"))
        assert "with channels=256" not in listed.fault or kind == "is no module"


@pytest.fixture(scope="module")
def listed() -> dict[str, Listing]:
    return {each.name: each for each in catalogue()}


class TestList:
    def test_all_are_there_and_only_ge_is_at_fault(self, listed: dict[str, Listing]):
        assert list(listed) == available()
        assert {name for name, each in listed.items() if each.fault} == {"ge"}
        assert "ConvMlp" in listed["ge"].fault
        assert listed["ge"].dims == ()

    @pytest.mark.parametrize("name", [name for name in available() if name != BROKEN])
    def test_params_and_dims_are_those_of_the_module(self, name: str, listed: Any):
        module = build(name, 256, init="paper")
        assert listed[name].params == sum(p.numel() for p in module.parameters())
        assert listed[name].dims == entry(name).dims
        assert listed[name].paper == entry(name).paper

    def test_work_by_hand(self, listed: dict[str, Listing]):
        c, m = 256, 14 * 14
        # se: two FC; pool and scale, two gates of sigmoid and one ReLU
        assert listed["se"].macs == 2 * c * 16
        assert listed["se"].elementwise_ops == 2 * c * m + c + 16
        # eca: one 1-D convolution of 5 taps over the channels
        assert listed["eca"].macs == 5 * c
        # triplet: three 7 x 7 convolutions of two maps, of (C, W), (H, C) and (H, W)
        assert listed["triplet"].macs == 2 * 49 * (14 * c + 14 * c + m)
        # bam: two FC and the four convolutions
        assert listed["bam"].macs == 2 * c * 16 + m * (c * 16 + 2 * 9 * 16 * 16 + 16)
        assert listed["scse"].macs == 2 * c * c // 2 + c * m
        # adapter: 1x1 convolutions to 16 channels and back
        assert listed["adapter"].macs == 2 * c * 16 * m
        # scale: a product and a sum of each element
        assert listed["scale"].elementwise_ops == 2 * c * m
        assert [listed[name].macs for name in ("simam", "srm", "gct", "sge", "scale")] == [0] * 5
        assert all(
            (each.elementwise_ops or 0) >= c * m for each in listed.values() if not each.fault
        )

    def test_dims_that_nobody_gave_are_tried(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(registry, "_entries", {})
        attn_surgery.register("flat")(lambda c: nn.Conv2d(c, c, 1))
        attn_surgery.register("any")(lambda c: nn.PReLU(c))
        attn_surgery.register("deep")(lambda c: nn.Conv3d(c, c, 1))
        attn_surgery.register("liar", dims=(1, 2))(lambda c: nn.Conv2d(c, c, 1))
        known = {each.name: each for each in catalogue()}
        assert {name: each.dims for name, each in known.items()} == {
            "any": (1, 2, 3),
            "deep": (3,),
            "flat": (2,),
            "liar": (2,),
        }
        assert [known[name].fault for name in ("any", "deep", "flat")] == ["", "", ""]
        assert "fails on a map (2, 256, 14): RuntimeError" in known["liar"].fault
        assert (known["deep"].params, known["deep"].macs) == (256 * 257, None)
        assert known["flat"].macs == 256 * 256 * 14 * 14

    def test_an_attention_that_cannot_be_counted_says_so(self, monkeypatch: pytest.MonkeyPatch):
        class Reading(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * float(x.numpy().mean())

        monkeypatch.setattr(registry, "_entries", {})
        attn_surgery.register("reading")(lambda c: Reading())
        (listed,) = catalogue()
        assert listed.dims == (1, 2, 3)
        assert listed.macs is None
        assert listed.fault.startswith("not counted: ")

    def test_global_random_state_is_left_alone(self):
        state = torch.get_rng_state()
        catalogue()
        assert torch.equal(torch.get_rng_state(), state)

    def test_table_and_data(self, listed: dict[str, Listing]):
        table = listing_table(listed.values())
        lines = table.splitlines()
        assert [line.split()[0] for line in lines[2:]] == available()
        assert "params (C = 256)" in lines[0]
        assert "MACs on 256 x 14 x 14" in lines[0]
        row = next(line for line in lines if line.startswith("cbam "))
        assert all(part in row for part in ("1807.06521", "8,564", "35,592", "1, 2, 3"))
        assert json.loads(json.dumps([asdict(each) for each in listed.values()]))
        assert MAP == (256, 14, 14)
