"""Attention put into the graphs of a forward: which value it receives, and who gets the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from attn_surgery.dataflow import function_name, is_item_set
from attn_surgery.finding import Step
from attn_surgery.host import asks_for
from attn_surgery.tracing import called_path

PERMUTED = "permuted_for_attention"
"""The mark of the permutations that are put around an attention."""

ATTENDED = "attended"
LATER = "takers_of_the_changed"
"""The mark of an attention's call and of the permutations around it."""


@dataclass(frozen=True)
class Insertion:
    """Where in one module's forward one of its children receives a value and replaces it."""

    after: Step
    """What makes the value."""
    attention: str
    """The name of the attention among the module's children."""
    into: tuple[Step, ...] = ()
    """The only steps that get the result; () for all that take the value."""
    in_place: bool = False
    """Whether making the value changed another, whose later uses mean this one."""
    replaces: bool = False
    """Whether the step of ``into`` is an old attention's result, which the new one's replaces."""
    channels_last_dims: int = 0
    """The number of spatial dims of a value ``(N, *spatial, C)``; 0 for ``(N, C, *spatial)``."""

    @property
    def to_maps(self) -> tuple[int, ...]:
        """The permutation that puts the channels first; () where they are."""
        return maps_first(self.channels_last_dims) if self.channels_last_dims else ()

    @property
    def from_maps(self) -> tuple[int, ...]:
        """The permutation that puts the channels last again."""
        return maps_last(self.channels_last_dims) if self.channels_last_dims else ()

    def renamed(self, names: Mapping[str, str]) -> Insertion:
        """Return the insertion for a module whose children have other names now."""
        into = tuple(step.renamed(names) for step in self.into)
        return replace(self, after=self.after.renamed(names), into=into)


def maps_first(dims: int) -> tuple[int, ...]:
    """Return the permutation of ``(N, *spatial, C)``, of so many spatial dims, to maps."""
    return (0, dims + 1, *range(1, dims + 1))


def maps_last(dims: int) -> tuple[int, ...]:
    """Return the permutation of maps, of so many spatial dims, that puts the channels last."""
    return (0, *range(2, dims + 2), 1)


class UnfaithfulError(Exception):
    """A forward cannot be rewritten such that it behaves as before for every value."""


@dataclass(frozen=True)
class _Found:
    """The nodes of one graph that an insertion is about."""

    value: fx.Node
    takers: tuple[fx.Node, ...]


def insert_alike(graphs: Sequence[fx.Graph], insertion: Insertion) -> str:
    """Put the call of the attention into graphs of the same forward, in different modes.

    Returns:
        The name of the value that it receives, in the first graph.

    Raises:
        UnfaithfulError: The value is not there in each.
    """
    found = _find(graphs[0], insertion)
    twins = [found, *(_twins(found, graphs[0], graph) for graph in graphs[1:])]
    for graph, each in zip(graphs, twins, strict=True):
        _insert(graph, each, insertion)
    return found.value.name


def value_name(graph: fx.Graph, insertion: Insertion) -> str:
    """Return the name of the value that the attention would receive.

    Raises:
        UnfaithfulError: It is not there.
    """
    found = _find(graph, insertion)
    if not all(_takes(taker, found.value) for taker in found.takers) and not insertion.replaces:
        raise UnfaithfulError(f"{found.value.name!r} is not taken by {insertion.into[0].name!r}")
    return found.value.name


def _find(graph: fx.Graph, insertion: Insertion) -> _Found:
    takers = tuple(_node(graph, step) for step in insertion.into)
    if insertion.after.kind != "argument":
        return _Found(_node(graph, insertion.after), takers)
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    given = [node for node in arguments if all(_takes(taker, node) for taker in takers)]
    if len(given) != 1:
        raise UnfaithfulError("it is not clear which argument is the value")
    return _Found(given[0], takers)


def _node(graph: fx.Graph, step: Step) -> fx.Node:
    matches = [node for node in graph.nodes if _makes(node, step)]
    if len(matches) <= step.occurrence:
        raise UnfaithfulError(f"{step.name!r} is not there in both modes")
    return matches[step.occurrence]


def _twins(found: _Found, graph: fx.Graph, other: fx.Graph) -> _Found:
    """Return the nodes of ``other`` that the same places in the code made."""
    value, *takers = (_twin(node, graph, other) for node in (found.value, *found.takers))
    return _Found(value, tuple(takers))


def _twin(node: fx.Node, graph: fx.Graph, other: fx.Graph) -> fx.Node:
    here, there = ([each for each in one.nodes if _is_alike(each, node)] for one in (graph, other))
    if len(here) != len(there):
        raise UnfaithfulError(f"{node.name!r} is not there in both modes")
    return there[here.index(node)]


def _is_alike(node: fx.Node, other: fx.Node) -> bool:
    if other.op == "placeholder":
        return (node.op, node.target) == (other.op, other.target)
    return _origin(node) == _origin(other)


def _origin(node: fx.Node) -> tuple[object, ...]:
    """Return the place in the code that made the node, and the child that it calls, if any."""
    return (node.op, called_path(node), node.meta.get("place"))


def _takes(taker: fx.Node, node: fx.Node) -> bool:
    """Tell whether a step takes a value, attended already perhaps."""
    return any(_unattended(each) is node for each in taker.all_input_nodes)


def _unattended(node: fx.Node) -> fx.Node:
    while node.meta.get(ATTENDED):
        (node,) = node.all_input_nodes
    return node


def _insert(graph: fx.Graph, found: _Found, insertion: Insertion) -> None:
    if insertion.replaces:
        _insert_instead(graph, found, insertion)
    elif insertion.into:
        _insert_before(graph, found, insertion)
    else:
        _insert_after(graph, found.value, insertion)


def _insert_after(graph: fx.Graph, node: fx.Node, insertion: Insertion) -> None:
    """Let all that take the value get the attended one."""
    users = list(node.users)
    if insertion.in_place and isinstance(node.args[0], fx.Node):
        users += [user for user in node.args[0].users if user > node]
    value = node.args[0] if is_item_set(node) else node
    assert isinstance(value, fx.Node)
    with graph.inserting_before(node.next):
        result = _attended(graph, value, insertion)
    later = [user for user in users if value is node and node not in user.all_input_nodes]
    for user in users:
        user.replace_input_with(node, result)
        if insertion.in_place and isinstance(node.args[0], fx.Node):
            user.replace_input_with(node.args[0], result)
    takers = sorted(result.users)
    result.meta[LATER] = tuple(i for i, each in enumerate(takers) if each in later)


def _insert_before(graph: fx.Graph, found: _Found, insertion: Insertion) -> None:
    """Let the steps of ``into``, and no others, get the attended value."""
    given = {taker: [each for each in taker.all_input_nodes if _unattended(each) is found.value]
             for taker in found.takers}  # fmt: skip
    if not all(given.values()):
        raise UnfaithfulError(f"{found.value.name!r} is not taken by {insertion.into[0].name!r}")
    if len({node for nodes in given.values() for node in nodes}) != 1:
        raise UnfaithfulError(f"{found.value.name!r} is attended for some of its takers already")
    (node,) = next(iter(given.values()))
    # not right after the node: what the value holds when it is taken is what counts
    with graph.inserting_before(min(found.takers)):
        result = _attended(graph, node, insertion)
    for taker in found.takers:
        taker.replace_input_with(node, result)


def _insert_instead(graph: fx.Graph, found: _Found, insertion: Insertion) -> None:
    """Let the attention's result stand for the old one's, and drop what that one did."""
    (old,) = found.takers
    with graph.inserting_before(old):
        result = _attended(graph, found.value, insertion)
    if insertion.in_place:  # whoever takes the changed map later means the product
        for user in [user for user in found.value.users if user > old]:
            user.replace_input_with(found.value, result)
    old.replace_all_uses_with(result)
    _erase(old)


def _erase(node: fx.Node) -> None:
    """Erase a node that nothing uses, and what only it used."""
    pending = [node]
    while pending:
        unused = pending.pop()
        if not unused.users and unused.op not in ("placeholder", "output"):
            pending += [each for each in unused.all_input_nodes if each not in pending]
            unused.graph.erase_node(unused)


def _attended(graph: fx.Graph, node: fx.Node, insertion: Insertion) -> fx.Node:
    """Call the attention, between two permutations if the channels are last."""
    value = _permuted(graph, node, insertion.to_maps)
    attention = graph.call_module(insertion.attention, (value,))
    attention.meta[ATTENDED] = True
    return _permuted(graph, attention, insertion.from_maps)


def _permuted(graph: fx.Graph, node: fx.Node, order: tuple[int, ...]) -> fx.Node:
    if not order:
        return node
    permuted = graph.call_method("permute", (node, *order))
    permuted.meta |= {PERMUTED: True, ATTENDED: True}
    return permuted


def _makes(node: fx.Node, step: Step) -> bool:
    if step.kind == "child":
        return called_path(node) == step.name
    called = node.op in ("call_function", "call_method") and called_path(node) is None
    return called and function_name(node) == step.name


def free_name(holder: nn.Module, taken: Sequence[str] = ()) -> str:
    """Return the first of ``attn``, ``attn_1``, ... that ``holder`` neither has nor asks for."""
    number = 0
    while True:
        name = f"attn_{number}" if number else "attn"
        if name not in taken and not _has(holder, name):
            return name
        number += 1


def _has(holder: nn.Module, name: str) -> bool:
    own = (vars(holder), holder._modules, holder._parameters, holder._buffers)
    return any(name in names for names in own) or hasattr(holder, name) or asks_for(holder, name)
