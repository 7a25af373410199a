"""Inputs that a host takes are taken with attention in it: an empty batch, a map that is none."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from plainly import plainly
from test_attention import VARIANTS as BASIC
from test_attention import a_map, one_thread, perturbed, same_bits, seeded
from test_catalogue import BROKEN, NO_SMALLER_THAN_KERNELS, WORKING
from test_catalogue import VARIANTS as OTHERS
from torch import Tensor, nn

import attn_surgery
from attn_surgery.attention import build, entry
from attn_surgery.attention.construction.batch_dims import take_any_batch
from attn_surgery.attention.construction.identity_start import check_forward

__all__ = ["one_thread", "seeded"]

C = 32
SLOW = pytest.mark.slow
ONE_OF_EACH = {name: (name, {}) for name, _ in WORKING}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {**ONE_OF_EACH, **BASIC, **OTHERS}
CASES = [
    pytest.param(
        variant,
        dims,
        marks=() if variant in ONE_OF_EACH and dims == max(entry(name).dims or ()) else SLOW,
    )
    for variant, (name, _) in VARIANTS.items()
    for dims in entry(name).dims or ()
]
# Their norms are of one number per channel and image.
REFUSE_ONE_IN_TRAINING = {"bam", "bam-product", "sk", "srm"}

over_inits = pytest.mark.parametrize("init", ["identity", "paper"])
over_modes = pytest.mark.parametrize("training", [False, True])


def made(variant: str, dims: int, init: str) -> nn.Module:
    name, options = VARIANTS[variant]
    return build(name, C, spatial_dims=dims, init=init, options=options)


@over_modes
@over_inits
@pytest.mark.parametrize(("variant", "dims"), CASES)
class TestAttention:
    def test_a_map_alone(self, variant: str, dims: int, init: str, training: bool):
        attention = perturbed(made(variant, dims, init)).train(training)
        x = a_map(dims, spatial=NO_SMALLER_THAN_KERNELS)[0]
        if training and variant in REFUSE_ONE_IN_TRAINING:
            for given in (x, x.unsqueeze(0)):
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    attention(given)
            return
        expected = plainly(copy.deepcopy(attention), x.unsqueeze(0)).squeeze(0)
        assert same_bits(attention(x), expected)
        x = x.movedim(0, -1).contiguous().movedim(-1, 0)
        alone, one = attention.eval()(x), attention(x.unsqueeze(0))
        assert same_bits(alone, plainly(attention, x.unsqueeze(0)).squeeze(0))
        assert alone.stride() == one.stride()[1:]

    def test_no_map(self, variant: str, dims: int, init: str, training: bool):
        attention = perturbed(made(variant, dims, init)).train(training)
        x = a_map(dims)[:0].requires_grad_()
        statistics = {k: v.clone() for k, v in attention.named_buffers() if "running" in k}
        y = attention(x)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        y.sum().backward()
        for parameter in attention.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.count_nonzero()
        assert all(torch.equal(v, attention.get_buffer(k)) for k, v in statistics.items())


class Block(nn.Module):
    def __init__(self, dims: int):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.a, self.b = (conv(C, C, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Deciding(Block):
    """Asks its input for a number, so that the attention is attached to a child."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x))) if x.sum() == x.sum() else x


HOSTS = [
    *[(Block, name, max(entry(name).dims or ())) for name in ONE_OF_EACH],
    *[(Deciding, name, 2) for name in ("cbam", "eca", "nl", "se")],
]


@pytest.mark.parametrize(("kind", "name", "dims"), HOSTS)
def test_a_host_takes_what_it_took(kind: type[Block], name: str, dims: int):
    host = kind(dims).eval()
    x = torch.randn(2, C, *NO_SMALLER_THAN_KERNELS[dims])
    for init in ("identity", "paper"):
        model = attn_surgery.apply(copy.deepcopy(host), name, init=init)
        for given in (x, x[0], x[:0]):
            y, expected = model(given), host(given)
            assert y.shape == expected.shape
            assert init == "paper" or torch.equal(y, expected)
        assert torch.equal(plainly(model, x[0]), plainly(model, x[:1])[0])


class Theirs(nn.Module):
    """Reads the shape of a batch, as other people's attention does."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.view(x.shape[0], -1, 1, 1).sigmoid()


class OwnCopy(Theirs):
    def __deepcopy__(self, memo: Any) -> OwnCopy:
        twin = OwnCopy(C)
        twin.load_state_dict(self.state_dict())
        return twin


class Rigid(nn.Module):
    """Takes a map alone for a batch of rows, and returns what has the right shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class TestOfOthers:
    def test_it_stays_what_it_is(self):
        attention, plain = build(Theirs, C, init="paper"), Theirs(C)
        assert isinstance(attention, Theirs)
        assert type(attention).__name__ == "Theirs"
        assert repr(attention) == repr(plain)
        assert list(attention.state_dict()) == list(plain.state_dict())
        assert type(build(Theirs, C, init="paper")) is type(attention)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    @over_inits
    def test_copies_and_formats(self, init: str):
        attention: Any = perturbed(build(Theirs, C, init=init))
        x, buffer = a_map(), io.BytesIO()
        torch.jit.save(torch.jit.script(attention), buffer)
        buffer.seek(0)
        anything = [
            copy.deepcopy(attention),
            pickle.loads(pickle.dumps(attention)),
            torch.jit.load(buffer),
            torch.compile(attention, fullgraph=True, backend="eager"),
        ]
        for other in anything:
            assert same_bits(other(x), attention(x))
            assert same_bits(other(x[0]), attention(x[0]))
            assert other(x[:0]).shape == x[:0].shape
        batch = torch.export.Dim("batch", min=2)
        batches: list[Any] = [
            torch.fx.symbolic_trace(attention),
            torch.export.export(attention, (x,), dynamic_shapes=({0: batch},)).module(),
        ]
        if init == "paper":  # the wrapper warns of its own check of the shape
            batches.append(torch.jit.trace(attention, x))
        for other in batches:
            for given in (x, x[:2]):
                torch.testing.assert_close(other(given), attention(given), rtol=0, atol=0)
        torch.compiler.reset()

    def test_a_map_that_is_taken_for_something_else(self):
        x = a_map()
        assert same_bits(build(lambda channels: Rigid(), C, init="paper")(x[0]), x.softmax(1)[0])

    def test_what_takes_any_batch_is_left_alone(self):
        conv = build(lambda channels: nn.Conv2d(channels, channels, 1), C, init="paper")
        assert type(conv) is nn.Conv2d

    @pytest.mark.parametrize("full", [0, 1, 2])
    def test_memory_that_ran_out_says_nothing_of_it(self, full):
        """A GPU that others fill, for which an attention would be changed or refused."""

        class Filling(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if len(x) == (full or len(x)):
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return x

        with pytest.raises(torch.OutOfMemoryError):
            build(lambda channels: Filling(), C, init="paper")

    def test_what_copies_itself_is_left_alone(self):
        attention = build(OwnCopy, C, init="paper")
        assert type(attention) is OwnCopy
        assert not take_any_batch(attention, 2)
        assert attention(a_map()).shape == a_map().shape

    def test_on_the_meta_device(self):
        with torch.device("meta"):
            attention = build(Theirs, C, init="paper")
        x = torch.randn(2, C, 4, 4, device="meta")
        assert attention(x[0]).shape == x[0].shape

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
    def test_it_is_tried_where_its_buffers_are(self, dtype):
        """It may have nothing else, and they are where the default device says."""

        class Scaled(nn.Module):
            scale: Tensor

            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.ones(C, 1, 1, dtype=dtype))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.scale

        with torch.device("meta"):
            check_forward(Scaled(), C, 2)
        assert isinstance(build(lambda channels: Scaled(), C, init="paper"), Scaled)

    def test_a_host_is_pickled_whole(self):
        host = attn_surgery.apply(Block(2), "eca", init="paper").eval()
        again = pickle.loads(pickle.dumps(host))
        x = torch.randn(C, 5, 6)
        assert torch.equal(again(x), host(x))


def test_everything_of_the_catalogue_is_held_against_this():
    assert set(attn_surgery.available()) - {BROKEN} == {name for name, _ in WORKING}
