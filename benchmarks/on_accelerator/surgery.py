"""Four attentions in ten hosts, in every format: identity bit for bit, gradients, and back again.

Then graphs and compiling: what a captured graph replays is what the calls return, bit for bit, and
what is compiled is near it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host import load_model
from benchmarks.on_accelerator.part import Part, captured, main

HOSTS = [
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "timm/convnext_tiny",
    "timm/efficientnet_b0",
    "torchvision/resnet18",
    "torchvision/regnet_y_400mf",
    "timm/resnetv2_50",
    "timm/mobilenetv3_large_100",
    "timm/res2net50_26w_4s",
    "torchvision/efficientnet_v2_s",
]
ATTENTIONS = ["se", "cbam", "eca", "coord"]
NEAR = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Format:
    """What weights and inputs are."""

    name: str
    dtype: torch.dtype
    layout: torch.memory_format = torch.contiguous_format

    def of(self, value: Any) -> Any:
        """Convert a model or a batch of maps."""
        return value.to(dtype=self.dtype, memory_format=self.layout)


FORMATS = [
    Format("float32", torch.float32),
    Format("bfloat16", torch.bfloat16),
    Format("float16", torch.float16),
    Format("float32, channels last", torch.float32, torch.channels_last),
]


def run(part: Part) -> None:
    """Go through the cells, those first that differ most."""
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    hosts = HOSTS[1:2] if part.tiny else HOSTS
    attentions = ATTENTIONS[:2] if part.tiny else ATTENTIONS
    formats = FORMATS[:1] if part.tiny else FORMATS
    size = 64 if part.tiny else 160
    for made in formats:
        for name in hosts:
            if part.has_time(f"{name}, {made.name}", 2):
                _host(part, name, made, attentions, size)
    for name in hosts[:4] if not part.tiny else []:
        for attention in attentions[:2]:
            if part.has_time(f"{name} + {attention}, compiled", 40):
                _cell(
                    part, name, attention, "float32", "compiled", _compiled(part, name, attention)
                )


def _host(part: Part, name: str, made: Format, attentions: list[str], size: int) -> None:
    source = made.of(load_model(name, device=None).to(part.device))
    # of batches whose statistics are taken, so that nothing is 0 or 1 by chance
    x = made.of(torch.randn(4, 3, size, size, device=part.device))
    expected = {mode: _output(source, x, train=mode) for mode in (False, True)}
    for attention in attentions:
        if not part.has_time(f"{name} + {attention}, {made.name}"):
            continue
        operated = attn_surgery.apply(copy.deepcopy(source), attention, existing="stack")
        checks = _checks(operated, x, expected)
        if part.device.type == "cuda" and made is not FORMATS[3]:
            checks = _and(checks, lambda operated=operated: _replayed(operated, x))
        _cell(part, name, attention, made.name, "eager", checks)


def _cell(
    part: Part, host: str, attention: str, made: str, way: str, checks: Iterator[tuple[str, bool]]
) -> None:
    """Keep the row of a cell: each check by its name, or the error that ended them."""
    done: dict[str, Any] = {}
    said = ""
    try:
        for check, holds in checks:
            done[check] = holds
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:500]
    ok = not said and all(done.values())
    part.add(host=host, attention=attention, format=made, way=way, ok=ok, **done, said=said)


def _checks(
    operated: nn.Module, x: Tensor, expected: dict[bool, Tensor]
) -> Iterator[tuple[str, bool]]:
    for train, output in expected.items():
        mode = "training" if train else "evaluation"
        yield f"identical in {mode}", torch.equal(_output(operated, x, train=train), output)
    yield "gradients", _get_gradients(operated, x)
    attn_surgery.remove(operated)
    yield "removed", torch.equal(_output(operated, x, train=False), expected[False])


def _and(
    checks: Iterator[tuple[str, bool]], more: Callable[[], tuple[str, bool]]
) -> Iterator[tuple[str, bool]]:
    """Add a check before the last, after which the attention is gone."""
    for check, holds in checks:
        if check == "gradients":
            yield more()
        yield check, holds


def _output(model: nn.Module, x: Tensor, *, train: bool) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad(), _buffers_kept(model):
        return model.train(train)(x)


def _get_gradients(model: nn.Module, x: Tensor) -> bool:
    """Tell whether every attention gets a gradient that is finite and not 0."""
    with _buffers_kept(model):
        model.train()(x).float().square().mean().backward()
    attentions = attn_surgery.inserted(model).values()
    moved = [[p.grad for p in each.parameters() if p.grad is not None] for each in attentions]
    model.zero_grad()
    return all(
        any(bool(grad.abs().sum() > 0) for grad in grads)
        and all(bool(grad.isfinite().all()) for grad in grads)
        for grads in moved
    )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the statistics of norms back, which a pass in training mode moves."""
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    yield
    for name, each in model.named_buffers():
        each.copy_(buffers[name])


def _replayed(model: nn.Module, x: Tensor) -> tuple[str, bool]:
    """Compare what a captured graph makes of a batch with what the calls do."""
    model.eval()
    with torch.no_grad():
        expected = model(x)
        graph, output = captured(lambda: model(x))
        output.zero_()
        graph.replay()
        torch.cuda.synchronize()
    return "replayed as a graph", torch.equal(output, expected)


def _compiled(part: Part, name: str, attention: str) -> Iterator[tuple[str, bool]]:
    model = attn_surgery.apply(
        load_model(name, device=None).to(part.device), attention, existing="stack"
    )
    model.eval()
    x = torch.randn(2, 3, 64, 64, device=part.device)
    with torch.no_grad():
        expected = model(x)
        output = torch.compile(model)(x)
    near = NEAR[x.dtype] * max(1.0, float(expected.abs().max()))
    yield "compiled, near", bool((output - expected).abs().max() <= near)


if __name__ == "__main__":
    main(run)
