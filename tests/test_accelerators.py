"""On a device that computes, the surgery and the report do what they do on the CPU."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_latency import DELAY_MS, Block, waiting
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host import Input
from attn_surgery.reporting import accelerator
from attn_surgery.reporting.measuring import Conditions, measure

pytestmark = pytest.mark.accelerator
ATTENTIONS = ["se", "cbam", "eca", "coord"]
SIZE = (16, 24, 24)


@pytest.fixture(scope="module")
def device() -> torch.device:
    there = accelerator()
    assert there is not None
    return there


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """One kernel for one convolution, whenever it runs."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def host(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).to(device)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_insertion_changes_no_bit(
    device: torch.device, attention: str, dtype: torch.dtype, train: bool
) -> None:
    source = host(device).to(dtype).train(train)
    operated = attn_surgery.apply(copy.deepcopy(source), attention)
    x = torch.randn(4, *SIZE, device=device, dtype=dtype)
    assert torch.equal(operated(x), source(x))
    assert {each.device.type for each in operated.parameters()} == {device.type}
    attn_surgery.remove(operated)
    assert torch.equal(operated(x), source(x))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_gets_a_gradient(device: torch.device, attention: str) -> None:
    operated = attn_surgery.apply(host(device), attention)
    x = torch.randn(4, *SIZE, device=device)
    operated(x).square().mean().backward()
    for each in attn_surgery.inserted(operated).values():
        grads = [p.grad for p in each.parameters() if p.grad is not None]
        assert any(bool(grad.abs().sum() > 0) for grad in grads)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"autocast": "bfloat16"}, {"dtype": "float16", "channels_last": True}, {"threads": 1}],
)
def test_report(device: torch.device, train: bool, options: dict[str, Any]) -> None:
    model = Block()
    result = attn_surgery.report(
        model, "cbam", input_size=SIZE, device=device, train=train, seconds=0.2, **options
    )
    assert [row.error for row in result.rows] == [None, None]
    assert all(row.latency_ms and row.peak_bytes for row in result.rows)
    assert all(row.by("device") is not None for row in result.rows)
    assert all(bool(row.train_peak_bytes) is train for row in result.rows)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert result.provenance["device"] not in {"", "cuda"}


def test_graphs(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("graphs are CUDA's")
    result = attn_surgery.report(
        host(device), "cbam", input_size=SIZE, graph=True, seconds=0.5, batch_size=2
    )
    for row in result.rows:
        graph, own = row.by("graph"), row.by("device")
        assert graph is not None
        assert own is not None
        assert graph.latency_ms is not None
        assert own.latency_ms is not None
        assert graph.latency_ms <= 1.5 * own.latency_ms
    assert "graph latency (median ms)" in str(result)


def test_sites_are_timed_warm_and_cold(device: torch.device) -> None:
    result = attn_surgery.report(
        host(device), "se", input_size=SIZE, per_site=True, seconds=0.5, batch_size=64
    )
    sites = [cost for cost in result.per_site if cost.block is not None]
    assert len(sites) == 2
    assert all(cost.warm_ms and cost.cold_ms for cost in sites)


def test_the_device_clock_is_that_of_events(device: torch.device) -> None:
    """A product of matrices takes as long for the report as between two events of one's own."""
    net = nn.Linear(4096, 4096, bias=False).to(device)
    x = torch.randn(4096, 4096, device=device)

    def by_hand() -> float:
        start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
        for _ in range(20):
            net(x)
        start.record()
        for _ in range(20):
            net(x)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 20

    given = Input(make=lambda: x)
    for attempt in range(3):
        run = measure([lambda: net], given, Conditions(device, seconds=1))
        (timings,) = run.timings
        assert not isinstance(timings, str)
        with torch.no_grad():
            expected = min(by_hand() for _ in range(5))
        if abs(timings["device"].median_ms / expected - 1) < 0.05:
            return
        assert attempt < 2, (timings["device"].median_ms, expected)


def test_known_delay_of_the_host(device: torch.device) -> None:
    """The host's clock sees it; the device had nothing to do in the meantime."""
    for attempt in range(3):
        _, row = attn_surgery.report(
            Block(), waiting, input_size=(16, 8, 8), device=device, seconds=1, init="paper"
        ).rows
        if row.latency_added_ms == pytest.approx(DELAY_MS, rel=0.1):
            return
        assert attempt < 2, row


def test_memory_is_given_back(device: torch.device) -> None:
    attn_surgery.report(Block(), "se", input_size=SIZE, device=device, seconds=0.1)
    gc.collect()
    before = torch.accelerator.memory_allocated(device)
    attn_surgery.report(Block(), "se", input_size=SIZE, device=device, seconds=0.1)
    gc.collect()
    assert torch.accelerator.memory_allocated(device) <= before + 2**20


def test_peaks_of_equal_models_are_equal(device: torch.device) -> None:
    """What libraries keep for themselves is not charged to the first."""
    builders = [lambda: Block().to(device)] * 2
    run = measure(builders, Input((SIZE,)), Conditions(device, seconds=0), train=True)
    peaks = [each["wall"].peak_bytes for each in run.timings if not isinstance(each, str)]
    assert len(set(peaks)) == 1


def test_out_of_memory_of_one_leaves_the_others(device: torch.device) -> None:
    class Hungry(Block):
        def forward(self, x: Tensor) -> Tensor:
            torch.empty(2**50, dtype=torch.uint8, device=x.device)
            return x

    builders = [lambda kind=kind: kind().to(device) for kind in (Block, Hungry, Block)]
    first, hungry, last = measure(builders, Input((SIZE,)), Conditions(device, seconds=0)).timings
    assert "out of memory" in str(hungry)
    assert not isinstance(first, str)
    assert not isinstance(last, str)


def test_a_batch_that_does_not_fit(device: torch.device) -> None:
    (row,) = attn_surgery.report(
        Block(), (), input_size=(16, 512, 512), device=device, batch_size=10**6
    ).rows
    assert "out of memory at batch 1000000" in (row.error or "")


def test_random_states_are_left_alone(device: torch.device) -> None:
    net = host(device)
    before = states(device)
    attn_surgery.report(Block(), "cbam", input_size=SIZE, device=device, seconds=0.1, train=True)
    assert states(device) == before
    attn_surgery.apply(net, "cbam", init="paper")
    assert states(device) == before


def states(device: torch.device) -> tuple[object, ...]:
    own = torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state().tolist(), own.tolist(), random.getstate()
