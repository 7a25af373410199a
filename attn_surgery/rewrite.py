"""The forwards that are generated: from a trace with attention in it, or around the host's own."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import linecache
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from attn_surgery.fidelity import describe, inspect_forward
from attn_surgery.operations import function_name
from attn_surgery.placing import Step
from attn_surgery.traces import Trace, called_path
from attn_surgery.tracing import trace

PERMUTED = "permuted_for_attention"
"""The mark of the permutations that are put around an attention."""


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
        dims = self.channels_last_dims
        return (0, dims + 1, *range(1, dims + 1)) if dims else ()

    @property
    def from_maps(self) -> tuple[int, ...]:
        """The permutation that puts the channels last again."""
        dims = self.channels_last_dims
        return (0, *range(2, dims + 2), 1) if dims else ()


class UnfaithfulError(Exception):
    """A forward cannot be rewritten such that it behaves as before for every value."""


@dataclass(frozen=True)
class Rewritten:
    """The graphs of one forward in evaluation and in training mode, attention included."""

    graphs: tuple[fx.Graph, ...]
    """One graph where both modes do the same, else evaluation and training."""
    after: tuple[str, ...]
    """Per insertion, the name of the value it receives in the (evaluation) graph."""
    watched: frozenset[str]
    dropped: tuple[str, ...] = ()
    """The children that are no longer called."""

    @functools.cached_property
    def methods(self) -> dict[str, Any]:
        """The graphs as methods; where the modes differ, ``forward`` asks ``training``."""
        return _methods(self.graphs)


@dataclass(frozen=True)
class Original:
    """The graphs of one forward as the host wrote it."""

    graphs: tuple[fx.Graph, ...]
    watched: frozenset[str]

    def with_attention(self, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Put the insertions, one after the other, into copies of the graphs.

        Raises:
            UnfaithfulError: One of the values is not there, or what an old attention used is no
                child.
        """
        graphs = [copy.deepcopy(graph) for graph in self.graphs]
        after = [[insert(graph, insertion) for insertion in insertions] for graph in graphs]
        dropped = _used(self.graphs) - _used(graphs)
        called = {
            path for graph in self.graphs for node in graph.nodes if (path := called_path(node))
        }
        if own := sorted(dropped - called):
            raise UnfaithfulError(f"the old attention uses {own[0]!r}, which is no child")
        return Rewritten(tuple(graphs), tuple(after[0]), self.watched, tuple(sorted(dropped)))


def _called(graphs: Iterable[fx.Graph]) -> set[str | None]:
    return {called_path(node) for graph in graphs for node in graph.nodes}


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
    graphs = [_faithful_trace(module, training).graph for training in modes]
    return Original(tuple(graphs), frozenset(found.watched))


def _faithful_trace(module: nn.Module, training: bool) -> Trace:
    traces, failure = trace(module, training=training, defaults=False)
    if not traces:
        raise UnfaithfulError(f"forward cannot be traced: {failure}")
    found = traces[0]
    if found.branched:
        raise UnfaithfulError("asks its input for a truth or a number")
    if found.wrote:
        raise UnfaithfulError("writes on the module")
    if found.constants:
        raise UnfaithfulError("makes a tensor that a trace would freeze")
    return found


def find(graph: fx.Graph, insertion: Insertion) -> fx.Node:
    """Return the node whose value the insertion replaces.

    Raises:
        UnfaithfulError: There is none, or it is not known which one.
    """
    if insertion.after.kind == "argument":
        return _argument_of(graph, insertion)
    return _node(graph, insertion.after)


def _node(graph: fx.Graph, step: Step) -> fx.Node:
    matches = [node for node in graph.nodes if _makes(node, step)]
    if len(matches) <= step.occurrence:
        raise UnfaithfulError(f"{step.name!r} is not there in both modes")
    return matches[step.occurrence]


def _argument_of(graph: fx.Graph, insertion: Insertion) -> fx.Node:
    """Return the one argument of the forward that all steps of ``into`` take."""
    taken = [set(_node(graph, step).all_input_nodes) for step in insertion.into]
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    candidates = [node for node in arguments if all(node in nodes for nodes in taken)]
    if len(candidates) != 1:
        raise UnfaithfulError("it is not clear which argument is the value")
    return candidates[0]


def insert(graph: fx.Graph, insertion: Insertion) -> str:
    """Put the call of the attention into ``graph``; return the name of the value it receives.

    Raises:
        UnfaithfulError: The value is not there.
    """
    node = find(graph, insertion)
    if insertion.replaces:
        _insert_instead(graph, node, insertion)
        return node.name
    if insertion.into:
        _insert_before(graph, node, insertion)
        return node.name
    users = list(node.users)
    if insertion.in_place and isinstance(node.args[0], fx.Node):
        users += [user for user in node.args[0].users if user > node]
    with graph.inserting_before(node.next):
        result = _attended(graph, node, insertion)
    for user in users:
        user.replace_input_with(node, result)
        if insertion.in_place and isinstance(node.args[0], fx.Node):
            user.replace_input_with(node.args[0], result)
    return node.name


def _insert_before(graph: fx.Graph, node: fx.Node, insertion: Insertion) -> None:
    """Let the steps of ``into``, and no others, get the attended value."""
    takers = [_node(graph, step) for step in insertion.into]
    if any(node not in taker.all_input_nodes for taker in takers):
        raise UnfaithfulError(f"{node.name!r} is not taken by {insertion.into[0].name!r}")
    # not right after the node: what the value holds when it is taken is what counts
    with graph.inserting_before(min(takers)):
        result = _attended(graph, node, insertion)
    for taker in takers:
        taker.replace_input_with(node, result)


def _insert_instead(graph: fx.Graph, node: fx.Node, insertion: Insertion) -> None:
    """Let the attention's result stand for the old one's, and drop what that one did."""
    (step,) = insertion.into
    old = _node(graph, step)
    if old is node:
        raise UnfaithfulError(f"{node.name!r} is map and result at once")
    with graph.inserting_before(old):
        result = _attended(graph, node, insertion)
    later = [user for user in node.users if user > old] if node in old.args[:1] else []
    for user in later:  # they mean the product, if that was made in place
        if insertion.in_place:
            user.replace_input_with(node, result)
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
    return _permuted(graph, attention, insertion.from_maps)


def _permuted(graph: fx.Graph, node: fx.Node, order: tuple[int, ...]) -> fx.Node:
    if not order:
        return node
    permuted = graph.call_method("permute", (node, *order))
    permuted.meta[PERMUTED] = True
    return permuted


def _makes(node: fx.Node, step: Step) -> bool:
    if step.kind == "child":
        return called_path(node) == step.name
    called = node.op in ("call_function", "call_method") and called_path(node) is None
    return called and function_name(node) == step.name


def _methods(graphs: tuple[fx.Graph, ...]) -> dict[str, Any]:
    codes: list[Any] = [graph.python_code("self") for graph in graphs]
    if len({code.src for code in codes}) == 1:
        return {"forward": compiled(codes[0].src, codes[0].globals, "forward")}
    names = ("_forward_in_evaluation", "_forward_in_training")
    methods = {
        name: compiled(code.src.replace("def forward(", f"def {name}(", 1), code.globals, name)
        for name, code in zip(names, codes, strict=True)
    }
    evaluation = codes[0]
    head = next(line for line in evaluation.src.splitlines() if line.startswith("def forward("))
    arguments = ", ".join(str(node.target) for node in graphs[0].nodes if node.op == "placeholder")
    chosen = (
        f"{head}\n    if self.training:\n        return self.{names[1]}({arguments})\n"
        f"    return self.{names[0]}({arguments})\n"
    )
    return {**methods, "forward": compiled(chosen, evaluation.globals, "forward")}


def passing_on(
    parameters: list[inspect.Parameter],
    inner: str,
    before: tuple[str, ...],
    after: tuple[str, ...],
) -> Any:
    """Compile a forward around ``inner`` that runs attention.

    Args:
        parameters: Those of ``inner``.
        inner: The name of the method.
        before: The attentions through which its first argument passes.
        after: The attentions through which its output passes.
    """
    known: dict[str, Any] = {}
    if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        head, given = "*args, **kwargs", ["*args", "**kwargs"]
        if before:
            head, given = f"value, {head}", ["value", *given]
    else:
        head = ", ".join(_declared(each, known) for each in parameters)
        given = [each.name for each in parameters]
    for name in before:
        given[0] = f"self.{name}({given[0]})"
    result = f"self.{inner}({', '.join(given)})"
    for name in after:
        result = f"self.{name}({result})"
    head = f"self, {head}" if head else "self"
    return compiled(f"def forward({head}):\n    return {result}\n", known, "forward")


def _declared(parameter: inspect.Parameter, known: dict[str, Any]) -> str:
    """Write a parameter with its annotation and default, which go into ``known``."""
    text = parameter.name
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        known[f"_type_of_{parameter.name}"] = parameter.annotation
        text += f": _type_of_{parameter.name}"
    if parameter.default is not parameter.empty:
        known[f"_default_of_{parameter.name}"] = parameter.default
        text += f" = _default_of_{parameter.name}"
    return text


def renamed(function: Any, name: str) -> Any:
    """Copy a function under another name: TorchScript goes by the name that it bears."""
    if not isinstance(function, types.FunctionType):
        return function
    twin = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__annotations__ = function.__annotations__
    twin.__module__ = function.__module__
    return twin


def compiled(source: str, known: dict[str, Any], name: str) -> Any:
    """Compile ``source`` where inspect, TorchScript and tracebacks find its text."""
    filename = f"<attn_surgery {hashlib.sha1(source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope = {**known, "__name__": __name__}
    exec(_code(source, filename), scope)
    return scope[name]


@functools.lru_cache(maxsize=1024)
def _code(source: str, filename: str) -> Any:
    return compile(source, filename, "exec")
