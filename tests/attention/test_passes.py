"""Large maps that get a gradient go by few passes: the same numbers, and less that is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from plainly import plainly
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from attn_surgery.attention import cbam
from attn_surgery.attention.construction import build, gate, passes

NAMES = ("se", "cam", "cbam")
SHAPES = {1: (3, 8, 7), 2: (3, 8, 5, 6), 3: (2, 8, 3, 4, 3)}


@pytest.fixture(autouse=True, params=["whole", "apart"])
def every_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small maps go by passes, at once or sample by sample."""
    for module in (cbam, gate):
        monkeypatch.setattr(module, "_SMALL", 1)
    if request.param == "apart":
        monkeypatch.setattr(passes, "_LARGE", 1)
        monkeypatch.setattr(passes, "_PART", 1)


def moved(name: str, spatial_dims: int = 2, **options: object) -> Any:
    """Build an attention in float64 that is past its start."""
    torch.manual_seed(0)
    attention = build(
        name, 8, spatial_dims=spatial_dims, options={"hidden_channels": 3, **options}
    ).double()
    with torch.no_grad():
        for each in attention.parameters():
            each += torch.randn_like(each) / 2
    return attention


def a_map(spatial_dims: int = 2, *, channels_last: bool = False) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(SHAPES[spatial_dims], dtype=torch.double)
    x[0] = x[0].round()  # several attain a maximum
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.requires_grad_()


def steps(y: Tensor) -> set[str]:
    """Return the names of all functions behind a result."""
    pending, found = [y.grad_fn], set[str]()
    while pending:
        node = pending.pop()
        if node is not None:
            found.add(node.name())
            pending += [each for each, _ in node.next_functions]
    return found


def by_passes(y: Tensor) -> bool:
    return any(name.startswith("Scaled") for name in steps(y))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("spatial_dims", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_gradients_and_statistics_are_those_of_plain_steps(
    name, spatial_dims, training, channels_last
):
    attention = moved(name, spatial_dims).train(training)
    x = a_map(spatial_dims, channels_last=channels_last)
    results = []
    for run in (nn.Module.__call__, plainly):
        one = copy.deepcopy(attention)
        y = run(one, x)
        weights = torch.arange(y.numel(), dtype=y.dtype).view(y.shape).cos()
        grads = torch.autograd.grad((y * weights).sum(), [x, *one.parameters()])
        results.append((y, grads, list(one.buffers())))
    (y, grads, buffers), (plain_y, plain_grads, plain_buffers) = results
    assert by_passes(y)
    assert not by_passes(plain_y)
    assert y.stride() == x.stride() == plain_y.stride()
    assert torch.equal(y, plain_y)
    torch.testing.assert_close(grads, plain_grads)
    torch.testing.assert_close(buffers, plain_buffers)


@pytest.mark.parametrize("name", NAMES)
def test_small_maps_go_by_torchs_own_steps(name, monkeypatch):
    for module in (cbam, gate):
        monkeypatch.setattr(module, "_SMALL", 1 << 16)
    attention, x = moved(name), a_map()
    results = []
    for run in (nn.Module.__call__, plainly):
        one = copy.deepcopy(attention)
        y = run(one, x)
        assert not by_passes(y)
        results.append((y, torch.autograd.grad(y.square().sum(), [x, *one.parameters()])))
    (y, grads), (plain_y, plain_grads) = results
    assert torch.equal(y, plain_y)
    torch.testing.assert_close(grads, plain_grads)


@pytest.mark.parametrize(
    "options",
    [
        {"pools": ["max"]},
        {"pools": ["max", "avg"]},
        {"channel_order": "mean_max"},
        {"spatial_norm": False},
        {"bias": False},
    ],
    ids=str,
)
def test_options_are_heeded(options):
    attention, x = moved("cbam", **options), a_map()
    y = attention(x)
    assert by_passes(y)
    torch.testing.assert_close(y, plainly(copy.deepcopy(attention), x))


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    attention, x = moved(name).eval(), a_map().detach()
    # at a maximum that several attain there is no derivative
    x = torch.randn_like(x)[:1, :, :3, :2].contiguous().requires_grad_()
    parameters = tuple(attention.parameters())

    def run(x: Tensor, *_: Tensor) -> Tensor:
        return attention(x)

    assert by_passes(attention(x))
    assert gradcheck(run, (x, *parameters))
    assert gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_identity_bit_for_bit(name, training, dtype):
    attention = build(name, 8).to(dtype).train(training)
    x = a_map().detach().to(dtype)
    x[0, 0, 0] = -0.0
    x.requires_grad_()
    y = attention(x)
    assert by_passes(y)
    assert torch.equal(y.view(torch.uint8), x.view(torch.uint8))


def kept(attention: nn.Module, x: Tensor) -> int:
    """Return the bytes that are kept for backward, whoever else holds them."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(x)
    return sum(found.values())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_one_map_is_kept(name, training):
    attention = build(name, 64).train(training)
    x = torch.randn(4, 64, 32, 32, requires_grad=True)
    small = sum(each.nbytes for each in attention.parameters())
    positions = x[:, :1].nbytes  # CBAM's spatial half: two maps of one channel in, gates out
    assert x.nbytes <= kept(attention, x) <= x.nbytes + small + 8 * positions


def hooked(attention: Any) -> None:
    attention.channel.fc1.register_forward_hook(lambda *_: None)


def hooked_half(attention: Any) -> None:
    attention.spatial.register_forward_pre_hook(lambda *_: None)


def another_half(attention: Any) -> None:
    attention.channel = nn.Identity()


def forward_of_its_own(attention: Any) -> None:
    attention.channel.forward = lambda x: x


@pytest.mark.parametrize("touch", [hooked, hooked_half, another_half, forward_of_its_own])
def test_what_is_hooked_or_exchanged_is_called(touch: Callable[[Any], None]):
    attention, x = moved("cbam").eval(), a_map()
    touch(attention)
    torch.testing.assert_close(attention(x), plainly(attention, x))


def test_a_hook_on_a_layer_sees_its_call():
    attention, seen = moved("cbam"), []
    attention.channel.fc1.register_forward_hook(lambda *_: seen.append(1))
    assert by_passes(attention(a_map()))
    assert seen


def test_a_hook_on_a_half_sees_its_call():
    attention, seen = moved("cbam"), []
    attention.spatial.register_forward_pre_hook(lambda *_: seen.append(1))
    attention(a_map())
    assert seen


def a_forward_hook_on_all(attention: nn.Module, x: Tensor) -> Iterator[Tensor]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        yield attention(x)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_transforms_get_the_plain_steps(name):
    attention, x = moved(name).eval(), a_map().detach()
    gradient = torch.func.grad(lambda x: attention(x).square().sum())
    of_each = torch.func.vmap(lambda one: attention(one[None])[0])
    tangent: Any = torch.func.jvp(attention, (x,), (torch.ones_like(x),))[1]
    x.requires_grad_()
    y = attention(x)
    torch.testing.assert_close(
        gradient(x.detach()), torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    )
    torch.testing.assert_close(of_each(x.detach()), y.detach())
    (transposed,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert tangent.shape == transposed.shape
    assert not any(map(by_passes, a_forward_hook_on_all(attention, x)))


def test_what_is_changed_in_place_after_it_was_kept_is_refused():
    attention, x = moved("cbam"), a_map()
    z = x * 1
    y = attention(z)
    z += 1
    with pytest.raises(RuntimeError, match=r"modified.* in ?place"):
        y.sum().backward()


def test_a_second_backward_gives_the_same():
    attention, x = moved("cbam"), a_map()
    y = attention(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, x), first)


def test_frozen_attention_hands_on_the_gradient_of_the_map():
    attention, x = moved("cbam").requires_grad_(requires_grad=False).eval(), a_map()
    (given,) = torch.autograd.grad(attention(x).square().sum(), x)
    (plain,) = torch.autograd.grad(plainly(attention, x).square().sum(), x)
    torch.testing.assert_close(given, plain)


def test_a_map_without_gradient_still_trains_the_attention():
    attention, x = moved("cbam").eval(), a_map().detach()
    parameters = list(attention.parameters())
    given = torch.autograd.grad(attention(x).square().sum(), parameters)
    plain = torch.autograd.grad(plainly(attention, x).square().sum(), parameters)
    torch.testing.assert_close(given, plain)
