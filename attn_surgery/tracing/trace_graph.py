"""What a trace is: a graph, and the calls in which its nodes were made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import Tensor, fx, nn


@dataclass(eq=False)
class Call:
    """One call of a module within a trace; the root's own call has no parent."""

    module: nn.Module
    path: str
    parent: Call | None = None
    start: int = 0
    """Index of the first node made in the call: what is older came from outside."""
    node: fx.Node | None = None
    """What the call returned, where that is a single traced value."""

    def lineage(self) -> Iterator[Call]:
        """Yield this call, the call that made it, and so on up to the root's."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False)
class Trace:
    """One way through ``root.module``'s forward, and what was met on it."""

    root: Call
    graph: fx.Graph
    calls: list[Call]
    """Every call that was followed inside, the root's included, in the order of their returns."""
    opaque: list[str] = field(default_factory=list)
    """Why a call that was to be followed inside could not be."""
    branched: list[nn.Module] = field(default_factory=list)
    """The modules whose forward asked a traced value for its truth, or for a number."""
    forked: list[nn.Module] = field(default_factory=list)
    """Those of them that may go another way when the answer is another."""
    looked_up: list[nn.Module] = field(default_factory=list)
    """Those that looked a traced value up, in a set or a dict: their other ways stay unknown."""
    matched: list[nn.Module] = field(default_factory=list)
    """Those that matched patterns with their values: their other ways stay unknown, too."""
    wrote: bool = False
    """Whether forward wrote on a module."""
    lists_children: bool = False
    """Whether the root's forward listed or counted its children."""
    reentered: bool = False
    """Whether a ``__call__`` of the root's own went on to its forward, hooks and all."""
    foreign: frozenset[str] = frozenset()
    """The names of values that were read off other modules, and are frozen in the graph."""
    constants: bool = False
    """Whether a tensor that forward made without looking at its input is baked in."""

    def __post_init__(self) -> None:
        self._modules = dict(self.root.module.named_modules(remove_duplicate=False))

    def is_one_of_many(self, module: nn.Module) -> bool:
        """Tell whether the module may go other ways, which are not known."""
        return module in self.looked_up or module in self.matched

    def module_at(self, path: str) -> nn.Module:
        """Return the module at ``path`` below the root."""
        return self._modules[path]

    def called_module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that ``node`` calls, or None where it calls none."""
        path = called_path(node)
        return None if path is None else self._modules[path]

    def attribute(self, node: fx.Node) -> Any:
        """Return the value that the ``get_attr`` node ``node`` reads."""
        path, _, name = str(node.target).rpartition(".")
        return getattr(self._modules[path], name)


CALLED = "called"
"""Of a node that calls a method of a module's beside its forward: the module's path."""


def called_path(node: fx.Node) -> str | None:
    """Return the path of the module that ``node`` calls, through ``forward`` or not."""
    if node.op == "call_module":
        return str(node.target)
    if CALLED in node.meta:
        return str(node.meta[CALLED])
    if node.op == "call_method" and node.target == "forward" and isinstance(node.args[0], fx.Node):
        return str(node.args[0].target)
    return None


def owner(node: fx.Node) -> Call:
    """Return the call in whose own ``forward`` the node was made."""
    call = node.meta["call"]()
    assert call is not None  # its trace holds it
    return call


def note_owner(node: fx.Node, call: Call) -> None:
    """Let the node know its call, and not keep it.

    Nodes and their graph stand in a cycle: what they keep, the model among it, would wait for the
    garbage collector.
    """
    node.meta["call"] = ref(call)


def index(node: fx.Node) -> int:
    """Return the node's place in the order of creation."""
    return node.meta["index"]


def is_opaque(node: fx.Node) -> bool:
    """Tell whether the node calls a module that was to be followed inside, and could not be."""
    return node.meta.get("is_opaque", False)


def baked_constant() -> Tensor:
    """Stand in a graph for a tensor that was made during the trace; never run."""
    raise NotImplementedError
