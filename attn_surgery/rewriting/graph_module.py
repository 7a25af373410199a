"""A host that is a ``torch.fx.GraphModule`` already: its own graph takes the attention in.

Copying, pickling, exporting and recompiling a ``GraphModule`` all start from its graph, so that is
where the attention has to be.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, TypeGuard

from torch import fx, nn

from attn_surgery.rewriting.insertion import LATER, PERMUTED, Insertion, insert_alike

_MARK = "_is_in_graph"
"""On the attention: how its call stands in the graph, which what a graph knows itself does not
outlive in a pickle."""


def is_graph_module(module: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Tell whether the module's forward is generated from a graph that it holds."""
    return isinstance(module, fx.GraphModule) and "forward" not in vars(module)


def graph_attentions(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attention children that the graph of ``module`` took in."""
    # the mark is on the attention: copies and pickles of a GraphModule drop marks on itself
    children = module._modules.items()
    return tuple(name for name, child in children if child is not None and _MARK in vars(child))


def graph_with_attention(module: fx.GraphModule, insertions: list[Insertion]) -> fx.Graph:
    """Return a copy of the module's graph with the insertions in it."""
    graph = copy.deepcopy(module.graph)
    for insertion in insertions:
        insert_alike([graph], insertion)
    return graph


def set_graph(module: fx.GraphModule, graph: fx.Graph, attentions: list[str]) -> None:
    """Give ``module`` another graph and mark which of its children are attentions."""
    for node in _calls(graph, attentions):
        vars(module.get_submodule(str(node.target)))[_MARK] = _place(node)
    module.graph = graph


def give_graph_back(module: fx.GraphModule) -> None:
    """Take the attention out of the module's graph and out of its children."""
    attentions, graph = graph_attentions(module), copy.deepcopy(module.graph)
    for node in _calls(graph, attentions):
        place = vars(module.get_submodule(str(node.target)))[_MARK]
        # what was pickled before there were places says True
        _bypass(node, place if isinstance(place, dict) else _place(node))
    module.graph = graph
    for name in attentions:
        del module._modules[name]


def _calls(graph: fx.Graph, attentions: Collection[str]) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module" and node.target in attentions]


def _place(attention: fx.Node) -> dict[str, Any]:
    """Tell whether permutations are around the call, and which of its takers took what was changed.

    A value that is changed in place goes by the name of the change and by the one before.
    """
    (value,) = attention.all_input_nodes
    is_permuted = bool(value.meta.get(PERMUTED))
    (result,) = attention.users if is_permuted else (attention,)
    return {"is_permuted": is_permuted, "later": result.meta.get(LATER, ())}


def _bypass(attention: fx.Node, place: dict[str, Any]) -> None:
    """Erase an attention and the permutations that were put around it."""
    (value,) = attention.all_input_nodes
    result = attention
    if place["is_permuted"]:
        (result,) = attention.users
        (value,) = value.all_input_nodes
    takers = sorted(result.users)
    for number in place["later"]:
        changed = value.args[0]
        if number < len(takers) and isinstance(changed, fx.Node):
            takers[number].replace_input_with(result, changed)
    result.replace_all_uses_with(value)
    node = result
    while node is not value:
        (before,) = node.all_input_nodes
        node.graph.erase_node(node)
        node = before
