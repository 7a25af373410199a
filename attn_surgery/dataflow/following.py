"""A model followed: the largest modules that can be, then what was not reached in them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from attn_surgery.dataflow.flow import Flow
from attn_surgery.host import has_entry, is_only_optional, likeness, may_add, options, taken, ways
from attn_surgery.tracing import is_primitive, trace


@dataclass
class Followed:
    """What came of following one module's forward."""

    path: str
    """Where the module is in the model."""
    flows: list[Flow] = field(default_factory=list)
    """For each way that was followed."""
    modules: set[nn.Module] = field(default_factory=set)
    """Those that were followed on what they are called with; the others are yet to be seen."""
    failure: str = ""
    """Why the first way that could not be followed to its end failed; "" where none did."""


def followed(modules: Iterable[tuple[nn.Module, str]]) -> Iterator[Followed]:
    """Follow the largest modules of a model that can be followed as a whole.

    What cannot be, or was not reached, is looked at on its own.

    Args:
        modules: Each with its path, those that hold others before them.
    """
    seen: set[nn.Module] = set()
    failures: dict[object, str] = {}
    for module, path in modules:
        if module in seen or not _can_be_traced(module):
            continue
        alike = likeness(module)
        if alike in failures:
            yield Followed(path, failure=failures[alike])
            continue
        found = _followed(module, path)
        if not found.flows:
            failures[alike] = found.failure
        seen |= found.modules
        yield found


def followed_every_way(module: nn.Module) -> list[Flow]:
    """Follow a module's forward along each way through its branches."""
    traces, _ = trace(module, inline=True, passed=next(ways(module)), every_path=True)
    return [Flow(each) for each in traces]


def followed_otherwise(module: nn.Module) -> Iterator[Flow]:
    """Follow a module's forward with other plain values than those it has, one after the other."""
    required, *_ = known = list(ways(module))
    for way in known:
        traces, _ = trace(module, inline=True, passed=way, every_path=True)
        yield from map(Flow, traces)
    for option in options(module):
        passed = required - {option.name}
        given = {option.name: option.value} if option.place is None else {}
        traces = []
        with contextlib.suppress(SystemExit), taken(option):  # it leads nowhere
            traces, _ = trace(module, inline=True, passed=passed, given=given, every_path=True)
        yield from map(Flow, traces)


def _followed(module: nn.Module, path: str) -> Followed:
    """Follow the forward for every choice of arguments that may lead to more of its modules."""
    result, hope = Followed(path), is_only_optional(module)
    for way in ways(module):
        traces, failure = trace(module, inline=True, passed=way)
        result.failure = result.failure or failure
        for each in traces:
            flow = Flow(each)
            lost = flow.calls_from_nowhere
            result.flows.append(flow)
            result.modules |= {call.module for call in each.calls if call not in lost}
            hope |= bool(lost)
        if result.flows and not (hope and _is_left(module, result.modules)):
            break
    if not result.flows and may_add(module) and len(next(ways(module))) > 1:
        # an argument that has to be given may be no tensor
        result.flows = list(itertools.islice(followed_otherwise(module), 1))
        result.modules = {call.module for flow in result.flows for call in flow.trace.calls}
    return result


def _is_left(module: nn.Module, seen: set[nn.Module]) -> bool:
    return any(each not in seen and _can_be_traced(each) for each in module.modules())


def _can_be_traced(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule) or is_primitive(module):
        return False
    return has_entry(module)
