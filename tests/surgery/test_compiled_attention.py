"""Attention compiled where it stands: the same function, the same keys, one compilation a kind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from plainly import plainly
from torch import Tensor, fx, nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.attention import build
from attn_surgery.surgery.compiled_attention import CompiledForward

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Counting:
    """Runs what it is given as it is, and counts it."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(len(module.graph.nodes))
        return module.forward


COUNTED = Counting()
"""One for all, as a backend has to be found again by what was pickled."""


@pytest.fixture
def graphs() -> list[int]:
    torch.compiler.reset()
    COUNTED.graphs.clear()
    return COUNTED.graphs


def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    return COUNTED(module, inputs)


def operated(attention: str = "cbam") -> nn.Module:
    torch.manual_seed(0)
    host = attn_surgery.apply(torchvision.models.resnet18(), attention).eval()
    for each in attn_surgery.inserted(host).values():
        for parameter in each.parameters():
            nn.init.normal_(parameter, std=0.1)
    return host


@pytest.mark.sampled(3)
@pytest.mark.parametrize("attention", ["se", "cbam", "eca", "scse", "triplet"])
def test_the_function_is_the_same_and_alike_is_compiled_once(
    graphs: list[int], attention: str
) -> None:
    host = operated(attention)
    keys, modules = list(host.state_dict()), dict(host.named_modules())
    with torch.no_grad():
        expected, larger = plainly(host, X), plainly(host, torch.cat([X, X], 2))
        assert attn_surgery.compile_attention(host, backend=backend) is host
        assert torch.equal(host(X), expected)
        kinds = {str(each) for each in attn_surgery.inserted(host).values()}
        assert len(graphs) == len(kinds)
        assert torch.equal(host(torch.cat([X, X], 2)), larger)
        made = len(graphs)
        assert made <= 2 * len(kinds)
        host(torch.randn(3, 3, 96, 64))
        assert len(graphs) == made
    assert list(host.state_dict()) == keys
    assert dict(host.named_modules()) == modules


# torch's compiler looks for gradients of what is no leaf
no_leaf = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.mark.slow
@no_leaf
def test_gradients(graphs: list[int]) -> None:
    plain, compiled = operated(), attn_surgery.compile_attention(operated(), backend="aot_eager")
    for host in (plain, compiled):  # in single precision, norms of few values amplify rounding
        host.double().train()(X.double()).square().sum().backward()
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(other.grad, one.grad)


@pytest.mark.slow
@no_leaf
@pytest.mark.parametrize("attention", ["se", "cbam", "coord"])
def test_training_at_any_size(attention: str) -> None:
    """Held against itself in eager mode, in both layouts."""
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = build(attention, 32).double()
    compiled = copy.deepcopy(plain)
    vars(compiled)["forward"] = CompiledForward(compiled, {})
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in (16, 8, 4, 12):
            x = torch.randn(2, 32, size, size, dtype=torch.double).contiguous(memory_format=layout)
            results = []
            for each in (plain, compiled):
                given = x.clone().requires_grad_()
                out = each(given * 1)
                out.square().sum().backward()
                results.append((out, given.grad))
            torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"layout_optimization": False}),
        ({"options": {"layout_optimization": True}}, {"layout_optimization": True}),
        ({"options": None}, {"layout_optimization": False}),
        (
            {"mode": "max-autotune-no-cudagraphs"},
            {
                "layout_optimization": False,
                "max_autotune": True,
                "coordinate_descent_tuning": True,
            },
        ),
        ({"backend": "eager"}, None),
    ],
)
def test_what_inductor_is_told(given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    options = CompiledForward(nn.Identity(), given).options
    assert options.get("options") == expected
    assert options["dynamic"]
    assert options.get("mode") is None


def test_torch_refuses_a_mode_with_options() -> None:
    attention = CompiledForward(
        nn.Identity(), {"mode": "default", "options": {"trace.enabled": True}}
    )
    with pytest.raises(RuntimeError, match="mode or options"):
        attention(torch.ones(1))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_copies_are_compiled_and_their_own(graphs: list[int], again: Any) -> None:
    host = attn_surgery.compile_attention(operated(), backend=backend)
    copied = again(host)
    with torch.no_grad():
        expected = copied(X)
        assert len(graphs) == 4
        for attention in attn_surgery.inserted(host).values():
            for parameter in attention.parameters():
                parameter.zero_()
        assert torch.equal(copied(X), expected)
        assert not torch.equal(host(X), expected)


def test_taken_out_and_put_back(graphs: list[int], tmp_path: Any) -> None:
    host = attn_surgery.compile_attention(operated(), backend=backend)
    with torch.no_grad():
        expected = host(X)
    attn_surgery.save(host, tmp_path / "file")
    attn_surgery.remove(host)
    assert not any("forward" in vars(each) for each in host.modules())
    attn_surgery.load(host, tmp_path / "file")
    with torch.no_grad():
        assert torch.equal(plainly(host, X), expected)


@no_leaf
def test_hooks_go_on(graphs: list[int]) -> None:
    host = operated()
    seen: list[int] = []
    for each in attn_surgery.inserted(host).values():
        each.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    attn_surgery.compile_attention(host, backend=backend)(X)
    assert seen == [2] * 8


def test_surgery_goes_on(graphs: list[int]) -> None:
    host = attn_surgery.compile_attention(operated(), backend=backend)
    attn_surgery.apply(host, "se", existing="stack")
    assert len(attn_surgery.inserted(host)) == 16
    assert sum("forward" in vars(each) for each in attn_surgery.inserted(host).values()) == 8


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "follow",
    [
        fx.symbolic_trace,
        lambda host: torch.jit.trace(host, X, check_trace=False),
        lambda host: torch.export.export(host, (X,)).module(),
        lambda host: torch.compile(host, backend="eager"),
    ],
)
def test_who_follows_the_model_sees_plain_attention(graphs: list[int], follow: Any) -> None:
    host = attn_surgery.compile_attention(operated(), backend=backend)
    with torch.no_grad():
        followed = follow(host)
        expected = followed(X)
        assert not graphs
        torch.testing.assert_close(host(X), expected)


def test_undone(graphs: list[int]) -> None:
    host = attn_surgery.compile_attention(operated(), backend=backend)
    attn_surgery.compile_attention(host, disable=True)(X)
    assert not graphs


def test_nothing_to_compile() -> None:
    with pytest.raises(SurgeryError, match="nothing is inserted"):
        attn_surgery.compile_attention(torchvision.models.resnet18())


def test_the_report_measures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []
    original = CompiledForward.__call__

    def noted(self: CompiledForward, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self.attention))
        return type(self.attention).forward(self.attention, *args, **kwargs)

    monkeypatch.setattr(CompiledForward, "__call__", noted)
    host = torchvision.models.resnet18()
    result = attn_surgery.report(
        host, ["se", "cbam"], input_size=(3, 32, 32), seconds=0, threads=1, compile="attention"
    )
    assert [row.error for row in result.rows] == [None] * 3
    assert {kind.__name__ for kind in seen} == {"SE", "CBAM"}
    assert result.provenance["compile"] == "attention"
    assert original is not noted
