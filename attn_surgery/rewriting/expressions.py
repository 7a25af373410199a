"""Which expression in a method of a module's own makes a value, or hands it on."""

from __future__ import annotations

import ast
import itertools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from attn_surgery.dataflow import Flow
from attn_surgery.finding import Finding, Spot, Step, places_on
from attn_surgery.host import Place, entry, ways
from attn_surgery.rewriting.insertion import UnfaithfulError
from attn_surgery.rewriting.nodes_of_steps import node_of
from attn_surgery.rewriting.read_values import Values, values_read
from attn_surgery.rewriting.syntax import REPEATING, around, is_value, node_at, operands
from attn_surgery.rewriting.wrapped_source import Definition, Expression, codes_in, definition
from attn_surgery.tracing import Trace, is_returned, trace


def expression_of(block: nn.Module, finding: Finding) -> tuple[Expression, frozenset[Step]]:
    """Return the expression whose value is to pass through an attention.

    It is the one that makes the value, or, where that is not in a method of the block's own or
    not all are to get the result, the operand of the one step that takes it. On other ways
    through the block it is a place for attention, too, or not evaluated.

    Args:
        block: The module, as the host has it.
        finding: The place in its forward.

    Returns:
        The expression, and what makes its value on the other ways, for which it stands, too.

    Raises:
        UnfaithfulError: There is no such expression, or it is passed more than once.
    """
    failure = "it is on no way that could be followed"
    for way in ways(block):
        modes = [_Source(block, way, finding, training=training) for training in (False, True)]
        # of a value that is looked up not all ways are known that make it
        flows = [flow for each in modes for flow in each.flows]
        is_one_of_many = any(flow.trace.is_one_of_many(block) for flow in flows)
        for choose in (_Source.taking,) if is_one_of_many else (_Source.making, _Source.taking):
            all_ways = (each.all_ways(choose, finding.spot) for each in modes)
            found, failures = zip(*all_ways, strict=True)
            first, *others = [each for mode in found for each in mode] or [[]]
            common = [one for one in first if all(one in each for each in others)]
            if common and all(found):
                covered = (each.covered.get(common[0], ()) for each in modes)
                return common[0], frozenset(itertools.chain.from_iterable(covered))
            failure = next(filter(None, failures), "several places in the code make or take it")
    raise UnfaithfulError(failure)


@dataclass(frozen=True)
class _Frame:
    """A place in a method of the block's own."""

    method: str
    known: Definition
    place: Place
    node: ast.expr | ast.stmt

    @property
    def text(self) -> str:
        """What stands there."""
        return self.known.text(self.known.range(self.node))

    def expression(self, node: ast.expr, *, is_changed: bool = False) -> Expression:
        """Return the place of an expression of the method."""
        where = self.known.range(node)
        return Expression(self.method, where, self.known.text(where), is_changed)


@dataclass(frozen=True)
class _Chosen:
    """Expressions of which one should be worth a value, or each where one stands for another.

    Attributes:
        flow: The way through the block.
        value: The node of the value; None for any argument of the block.
        text: Where in the source they stand.
        expressions: They.
        are_calls: Whether each is a call that the one before it makes.
    """

    flow: Flow
    value: fx.Node | None
    text: str
    expressions: list[Expression]
    are_calls: bool = False

    def is_worth(self, names: list[str]) -> bool:
        """Tell whether an expression, evaluated once, is worth the value."""
        if len(names) != 1:
            return False
        nodes = self.flow.trace.graph.nodes
        node = next((each for each in nodes if each.name == names[0]), None)
        if node is None:  # chance took another way
            return False
        if self.value is None:
            return node.op == "placeholder"
        return self.flow.becomes(node, self.value)


class _Source:
    """The methods of a block, and the ways through them."""

    def __init__(self, block: nn.Module, way: frozenset[str], finding: Finding, *, training: bool):
        self.block = block
        self.way = way
        self.training = training
        self.flows = [Flow(each) for each in self._traces()]
        self.steps = {
            flow: [each.spot.step for each in places_on(flow, finding)] for flow in self.flows
        }
        """Per way, what makes the values that attention could have there."""
        leading = [flow for flow, steps in self.steps.items() if finding.spot.step in steps]
        # a block that is the branch of another's addition has no place of its own
        self.leading = leading or self.flows
        self.covered: dict[Expression, list[Step]] = {}
        """Of each expression, what makes its value on other ways."""
        self.methods = dict(_methods(block))
        """Per code that the block runs as its own, the method that it is in."""

    def _traces(self) -> list[Trace]:
        options: dict[str, Any] = {"inline": True, "every_path": True, "places": True}
        return trace(self.block, training=self.training, passed=self.way, **options)[0]

    def all_ways(
        self, choose: Callable[[_Source, Flow, Spot], _Chosen], spot: Spot
    ) -> tuple[list[list[Expression]], str]:
        """Return the expressions that each way shows, and why one shows none where none does."""
        chosen: list[_Chosen] = []
        failure = "it is not on the way of both modes"
        for flow in self.leading:
            try:
                chosen.append(choose(self, flow, spot))
            except UnfaithfulError as error:
                failure = str(error)
        found: list[list[Expression]] = []
        values = self._values(chosen)
        others = [each for each in self.flows if each not in self.leading]
        may_cover = choose is _Source.taking
        for each in chosen:
            own = values.get(each.flow, {})
            worth = [
                one
                for one in each.expressions
                if each.is_worth(own.get(one, []))
                and all(self._covers(way, one, values[way], may=may_cover) for way in others)
            ]
            if len(worth) == 1 or (worth and each.are_calls):
                found.append(worth)
            else:
                failure = f"it is {'no' if not worth else 'more than one'} operand of {each.text!r}"
        return found, "" if found else failure

    def _covers(self, way: Flow, expression: Expression, values: Values, *, may: bool) -> bool:
        """Tell whether an expression is not evaluated on a way, or is its place for attention."""
        nodes = {each.name: each for each in way.trace.graph.nodes}
        for name in values.get(expression, []):
            places = {step: node_of(way, self.block, step) for step in self.steps[way] if step.name}
            steps = [step for step, each in places.items() if way.becomes(nodes[name], each)]
            if not (steps and may):
                return False
            self.covered.setdefault(expression, []).extend(steps)
        return True

    def _values(self, chosen: list[_Chosen]) -> dict[Flow, Values]:
        """Return what the expressions are worth on each way."""
        expressions = {each for one in chosen for each in one.expressions}
        if not expressions:
            return {}
        methods = dict(self.methods.values())
        with values_read(self.block, methods, expressions) as read:
            traces = self._traces()
        if len(traces) != len(self.flows):
            raise UnfaithfulError("its own name for itself stands for something else there")
        return {
            flow: read.get(each.graph, {}) for flow, each in zip(self.flows, traces, strict=True)
        }

    def making(self, flow: Flow, spot: Spot) -> _Chosen:
        """Choose what makes the value, as one way shows it."""
        step = spot.step
        if spot.into:
            raise UnfaithfulError("not all are to get the result")
        if step.kind == "argument":
            raise UnfaithfulError("it is given to the block")
        value = node_of(flow, self.block, step)
        frames, inner = self._frames(flow, value)
        is_made_here = not inner or (step.kind == "child" and self._is_child(inner[0], step))
        chosen = _returning(flow, value, frames)
        if is_made_here and not spot.in_place:
            chosen.append(frames[-1])
        if not chosen:
            called = "is called by a function outside of the block"
            why = "changes it in place" if is_made_here else called
            raise UnfaithfulError(f"{step.name!r} {why}")
        places = [each.expression(each.node) for each in chosen if is_value(each.node)]
        if not places:
            raise UnfaithfulError(f"{chosen[-1].text!r} has no value")
        return _Chosen(flow, value, chosen[-1].text, list(dict.fromkeys(places)), are_calls=True)

    def taking(self, flow: Flow, spot: Spot) -> _Chosen:
        """Choose the operands of the one step that takes the value, as one way shows it."""
        if spot.is_read_late:  # operands are evaluated one after the other, before it is taken
            raise UnfaithfulError(f"what {spot.step.name!r} holds is changed before it is taken")
        is_given = spot.step.kind == "argument"
        value = None if is_given else node_of(flow, self.block, spot.step)
        takers = [node_of(flow, self.block, step) for step in spot.into]
        if not takers and value is not None:
            users = flow.value_users[value]
            takers = [user for user in users if user.users or flow.is_in_place(user)]
        if len(takers) != 1:
            raise UnfaithfulError("several steps take it")
        taker, step = takers[0], spot.into[0] if spot.into else None
        frames, inner = self._frames(flow, taker)
        frame = frames[-1]
        is_child = step is not None and step.kind == "child"
        if inner and not (is_child and step and self._is_child(inner[0], step)):
            raise UnfaithfulError("what takes it is called by a function outside of the block")
        places = list(operands(frame.node))
        if not _is_changed_by(flow, taker, value):
            return _Chosen(flow, value, frame.text, [*map(frame.expression, places)])
        if spot.into and not all(map(_is_plain, places)):
            raise UnfaithfulError(f"{frame.text!r} changes in place what others read first")
        # by a name others may have it, too; what has none is new
        changed = [
            frame.expression(each, is_changed=isinstance(each, ast.Name))
            for each in places
            if not isinstance(each, (ast.Attribute, ast.Subscript))
        ]
        return _Chosen(flow, value, frame.text, changed)

    def _frames(self, flow: Flow, node: fx.Node) -> tuple[list[_Frame], list[types.CodeType]]:
        """Return the places of the block's own, and the codes that run inside of the last."""
        chain = list(reversed(node.meta["place"]))
        own = 0
        while own < len(chain) and chain[own][0] in self.methods:
            if own and chain[own][0] is chain[0][0]:
                break  # a child of the same class
            own += 1
        if not own:
            raise UnfaithfulError("its forward is wrapped by another function")
        frames = [self._read(code, offset) for code, offset in chain[:own]]
        code = chain[own - 1][0]
        if any(len(_callers(each, code)) > 1 for each in self.flows):
            raise UnfaithfulError(f"{self.methods[code][0]!r} is called at several places")
        return frames, [each for each, _ in chain[own:]]

    def _read(self, code: types.CodeType, offset: int) -> _Frame:
        """Look a place up in the source, and refuse what may be passed again and again."""
        name, function = self.methods[code]
        known = definition(function)
        frame = _Frame(name, known, (code, offset), node_at(known, code, offset))
        outside = around(known.node, frame.node)
        if outside and isinstance(outside[-1], ast.withitem):
            raise UnfaithfulError(f"{frame.text!r} is entered")
        if any(isinstance(each, REPEATING) for each in outside):
            raise UnfaithfulError(f"{frame.text!r} is in a loop")
        return frame

    def _is_child(self, code: types.CodeType, step: Step) -> bool:
        """Tell whether the code is the forward of the child."""
        function = entry(self.block.get_submodule(step.name))
        return getattr(getattr(function, "__func__", function), "__code__", None) is code


def _returning(flow: Flow, value: fx.Node, frames: list[_Frame]) -> list[_Frame]:
    """Return the places at which a call that made the value returns it, and no more.

    The outermost is the first, and the best: others than the block's own forward may call what it
    calls, and are to get no attention.
    """
    chain = list(reversed(value.meta["place"]))
    tensors = [node for node in flow.nodes if flow.becomes(node, value)]
    found: list[_Frame] = []
    for depth in range(min(len(frames), len(chain) - 1)):
        place, function = frames[depth].place, chain[depth + 1][0]
        inside = [each for each in flow.value_users[value] if place in each.meta["place"]]
        if not inside and any(is_returned(each, place, function) for each in tensors):
            found.append(frames[depth])
    return found


def _is_plain(node: ast.expr) -> bool:
    """Tell whether evaluating an expression reads a name, or an attribute, and nothing else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, (ast.Name, ast.Constant))


def _is_changed_by(flow: Flow, taker: fx.Node, value: fx.Node | None) -> bool:
    """Tell whether the taker changes the value in place; None stands for any argument."""
    changed = taker.args[0] if taker.args and flow.is_in_place(taker) else None
    if not isinstance(changed, fx.Node):
        return False
    return changed.op == "placeholder" if value is None else flow.becomes(changed, value)


def _callers(flow: Flow, code: types.CodeType) -> set[tuple[Place, ...]]:
    """Return the ways by which a code was called on one way through the block."""
    found: set[tuple[Place, ...]] = set()
    for node in flow.nodes:
        chain = list(reversed(node.meta.get("place", ())))
        codes = [each for each, _ in chain]
        if code in codes:
            found.add(tuple(chain[: codes.index(code)]))
    return found


def _methods(block: nn.Module) -> Iterator[tuple[types.CodeType, tuple[str, types.FunctionType]]]:
    """Yield the codes of the methods that the block runs when it calls them by name."""
    named: dict[str, object] = {}
    for cls in reversed(type(block).__mro__):
        named |= vars(cls)  # a static method is no function there
    patched = vars(block).get("forward")
    if isinstance(patched, types.MethodType) and patched.__self__ is block:
        named["forward"] = patched.__func__
    elif patched is not None:
        named.pop("forward", None)
    for name, function in named.items():
        if isinstance(function, types.FunctionType) and function.__code__.co_argcount:
            for code in (function.__code__, *codes_in(function.__code__)):
                yield code, (name, function)
