"""A forward pass captured as a CUDA graph: what a deployed model takes, no launch from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from attn_surgery.errors import SurgeryError

MAX_INPUTS = 8


class Replayed:
    """A forward pass, captured once for each of several inputs, which it takes in turn.

    A graph reads the addresses that it was captured with: replayed alone, it would find in the
    cache the very input that it read before.

    Args:
        forward: What runs on one input.
        inputs: The inputs, on a CUDA device.
        warm_up: How often to run before capturing.
    """

    def __init__(
        self, forward: Callable[[Any], object], inputs: Sequence[Any], warm_up: int = 3
    ) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._outputs: list[object] = []  # what is captured writes there
        self._next = 0
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                forward(inputs[0])
        torch.cuda.current_stream().wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()
        for each in inputs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._outputs.append(forward(each))
            self._graphs.append(graph)

    def __call__(self) -> object:
        """Replay the next graph."""
        number = self._next
        self._next = (number + 1) % len(self._graphs)
        self._graphs[number].replay()
        return self._outputs[number]


def rotated(make: Callable[[], Any], device: torch.device) -> list[Any]:
    """Make inputs, two at least, which together do not fit into the device's cache (or as many).

    Args:
        make: Makes one.
        device: A CUDA device.
    """
    first = make()
    size = sum(each.nbytes for each in tree_leaves(first) if isinstance(each, torch.Tensor))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = -(-cache // max(size, 1)) + 1
    return [first, *(make() for _ in range(min(max(wanted, 2), MAX_INPUTS) - 1))]


def check_graphs(device: torch.device) -> None:
    """Refuse a device on which no graph is captured.

    Raises:
        SurgeryError: It is no CUDA device.

    Example:
        >>> check_graphs(torch.device("cpu"))
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: graph: captured on CUDA devices alone, not on cpu
    """
    if device.type != "cuda":
        raise SurgeryError(f"graph: captured on CUDA devices alone, not on {device}")
