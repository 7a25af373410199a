"""The forwards that are generated: from a trace with attention in it, or around the host's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from attn_surgery.host import describe, entry_name, inspect_forward
from attn_surgery.rewriting.insertion import Insertion, UnfaithfulError, insert_alike
from attn_surgery.rewriting.train_eval_switch import as_methods
from attn_surgery.tracing import Trace, called_path, trace


@dataclass(frozen=True)
class Rewritten:
    """The graphs of one forward in evaluation and in training mode, attention included."""

    graphs: tuple[fx.Graph, ...]
    """One graph where both modes do the same, else evaluation and training."""
    after: tuple[str, ...]
    """Per insertion, the name of the value it receives in the (evaluation) graph."""
    watched: frozenset[str]
    watches_children: bool
    """Whether the forward goes by what children there are."""
    dropped: tuple[str, ...] = ()
    """The children that are no longer called."""
    own: str = "forward"
    """The name of the method."""

    @functools.cached_property
    def methods(self) -> dict[str, Any]:
        """The graphs as methods; where the modes differ, that which is called asks the mode."""
        return as_methods(self.graphs, self.own)


@dataclass(frozen=True)
class Original:
    """The graphs of one forward as the host wrote it."""

    graphs: tuple[fx.Graph, ...]
    watched: frozenset[str]
    watches_children: bool
    own: str
    """The name of the method."""

    def with_attention(self, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Put the insertions, one after the other, into copies of the graphs.

        Raises:
            UnfaithfulError: One of the values is not there, or what an old attention used is no
                child.
        """
        graphs = [copy.deepcopy(graph) for graph in self.graphs]
        after = [insert_alike(graphs, insertion) for insertion in insertions]
        dropped = _used(self.graphs) - _used(graphs)
        called = {
            path for graph in self.graphs for node in graph.nodes if (path := called_path(node))
        }
        if own := sorted(dropped - called):
            raise UnfaithfulError(f"the old attention uses {own[0]!r}, which is no child")
        return Rewritten(
            graphs=tuple(graphs),
            after=tuple(after),
            watched=self.watched,
            watches_children=self.watches_children,
            dropped=tuple(sorted(dropped)),
            own=self.own,
        )


def _used(graphs: Iterable[fx.Graph]) -> set[str]:
    """Return the paths of the children and attributes that the graphs use."""
    nodes = (node for graph in graphs for node in graph.nodes)
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def original(module: nn.Module) -> Original:
    """Trace the module's own forward, untouched so far.

    Raises:
        UnfaithfulError: Why no trace behaves as the forward does.
    """
    found = inspect_forward(module)
    if found.obstacles:
        raise UnfaithfulError(describe(found.obstacles))
    modes = (False, True) if found.reads_mode else (False,)
    traces = [_faithful_trace(module, training) for training in modes]
    watches_children = found.reaches_children or any(each.lists_children for each in traces)
    return Original(
        graphs=tuple(each.graph for each in traces),
        watched=frozenset(found.watched),
        watches_children=watches_children,
        own=entry_name(type(module)),
    )


def _faithful_trace(module: nn.Module, training: bool) -> Trace:
    traces, failure = trace(module, training=training)
    if not traces:
        raise UnfaithfulError(f"forward cannot be traced: {failure}")
    found = traces[0]
    if found.branched:
        raise UnfaithfulError("asks its input for a truth or a number")
    if found.wrote:
        raise UnfaithfulError("writes on the module")
    if found.reentered:
        raise UnfaithfulError("its __call__ goes on to its forward, by hooks perhaps")
    if found.foreign:
        raise UnfaithfulError(f"reads {min(found.foreign)!r} of another module")
    if found.constants:
        raise UnfaithfulError("makes a tensor that a trace would freeze")
    return found
