"""Which expression in a method of a module's own makes a value, or hands it on."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from attn_surgery.dataflow import Flow, function_name
from attn_surgery.finding import Spot, Step, path_below
from attn_surgery.host import Place, entry, ways
from attn_surgery.rewriting.insertion import UnfaithfulError
from attn_surgery.rewriting.wrapped_source import Definition, Expression, codes_in, definition
from attn_surgery.tracing import Call, is_returned, trace


def expression_of(block: nn.Module, spot: Spot) -> Expression:
    """Return the expression whose value is to pass through an attention.

    It is the one that makes the value, or, where that is not in a method of the block's own or
    not all are to get the result, the operand of the one step that takes it.

    Args:
        block: The module, as the host has it.
        spot: Where the value is held in its forward.

    Raises:
        UnfaithfulError: There is no such expression, or it is passed more than once.
    """
    failure = "it is on no way that could be followed"
    for way in ways(block):
        modes = [_Source(block, way, training=training) for training in (False, True)]
        for choose in (_Source.making, _Source.taking):
            found, failures = zip(*(each.all_ways(choose, spot) for each in modes), strict=True)
            here = {expression for each in found for expression in each}
            if len(here) == 1 and all(found):
                return here.pop()
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

    def expression(self, node: ast.expr) -> Expression:
        """Return the place of an expression of the method."""
        where = self.known.range(node)
        return Expression(self.method, where, self.known.text(where))


class _Source:
    """The methods of a block, and the ways through them."""

    def __init__(self, block: nn.Module, way: frozenset[str], *, training: bool):
        traces, _ = trace(
            block, training=training, inline=True, passed=way, every_path=True, places=True
        )
        self.block = block
        self.flows = [Flow(each) for each in traces]
        self.methods = dict(_methods(block))
        """Per code that the block runs as its own, the method that it is in."""

    def all_ways(
        self, choose: Callable[[_Source, Flow, Spot], Expression], spot: Spot
    ) -> tuple[set[Expression], str]:
        """Return the expressions that the ways show, and why one shows none where none does."""
        found: set[Expression] = set()
        failure = "it is not on the way of both modes"
        for flow in self.flows:
            try:
                found.add(choose(self, flow, spot))
            except UnfaithfulError as error:
                failure = str(error)
        return found, "" if found else failure

    def making(self, flow: Flow, spot: Spot) -> Expression:
        """Return what makes the value, as one way shows it."""
        step = spot.step
        if spot.into:
            raise UnfaithfulError("not all are to get the result")
        if step.kind == "argument":
            raise UnfaithfulError("it is given to the block")
        value = _node_of(flow, self.block, step)
        frames, inner = self._frames(flow, value)
        frame = frames[-1]
        is_made_here = not inner or (step.kind == "child" and self._is_child(inner[0], step))
        if not is_made_here or spot.in_place:
            frame = _returning(flow, value, frames)
            if frame is None:
                called = "is called by a function outside of the block"
                why = "changes it in place" if is_made_here else called
                raise UnfaithfulError(f"{step.name!r} {why}")
        if not isinstance(frame.node, ast.expr):
            raise UnfaithfulError(f"{frame.text!r} has no value")
        return frame.expression(frame.node)

    def taking(self, flow: Flow, spot: Spot) -> Expression:
        """Return the operand of the one step that takes the value, as one way shows it."""
        is_given = spot.step.kind == "argument"
        value = None if is_given else _node_of(flow, self.block, spot.step)
        takers = [_node_of(flow, self.block, step) for step in spot.into]
        if not takers and value is not None:
            takers = [user for user in flow.value_users[value] if user.users]
        if len(takers) != 1:
            raise UnfaithfulError("several steps take it")
        taker, step = takers[0], spot.into[0] if spot.into else None
        frames, inner = self._frames(flow, taker)
        frame = frames[-1]
        is_child = step is not None and step.kind == "child"
        if inner and not (is_child and step and self._is_child(inner[0], step)):
            raise UnfaithfulError("what takes it is called by a function outside of the block")
        place = 0 if is_child else _argument(flow, value, taker)
        operand = _operand_at(
            frame.node, place, is_method=taker.op == "call_method" and not is_child
        )
        if operand is None:
            raise UnfaithfulError(f"it is no operand of {frame.text!r}")
        return frame.expression(operand)

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
        frame = _Frame(name, known, (code, offset), _node_at(known, code, offset))
        around = _around(known.node, frame.node)
        if around and isinstance(around[-1], ast.withitem):
            raise UnfaithfulError(f"{frame.text!r} is entered")
        if any(isinstance(each, _REPEATING) for each in around):
            raise UnfaithfulError(f"{frame.text!r} is in a loop")
        return frame

    def _is_child(self, code: types.CodeType, step: Step) -> bool:
        """Tell whether the code is the forward of the child."""
        function = entry(self.block.get_submodule(step.name))
        return getattr(getattr(function, "__func__", function), "__code__", None) is code


def _returning(flow: Flow, value: fx.Node, frames: list[_Frame]) -> _Frame | None:
    """Return the innermost place at which a call that made the value returns it, and no more."""
    chain = list(reversed(value.meta["place"]))
    tensors = [node for node in flow.nodes if flow.becomes(node, value)]
    for depth in reversed(range(min(len(frames), len(chain) - 1))):
        place, function = frames[depth].place, chain[depth + 1][0]
        inside = [each for each in flow.value_users[value] if place in each.meta["place"]]
        if not inside and any(is_returned(each, place, function) for each in tensors):
            return frames[depth]
    return None


def _callers(flow: Flow, code: types.CodeType) -> set[tuple[Place, ...]]:
    """Return the ways by which a code was called on one way through the block."""
    found: set[tuple[Place, ...]] = set()
    for node in flow.nodes:
        chain = list(reversed(node.meta.get("place", ())))
        codes = [each for each, _ in chain]
        if code in codes:
            found.add(tuple(chain[: codes.index(code)]))
    return found


_REPEATING = (
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.Lambda,
)


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


def _node_of(flow: Flow, block: nn.Module, step: Step) -> fx.Node:
    """Return the node of a step of the block's own forward.

    Raises:
        UnfaithfulError: It is not there.
    """
    root = flow.trace.root
    matches: list[tuple[int, fx.Node]] = []
    for node in flow.steps_in.get(root, ()):
        module = flow.trace.called_module(node)
        if step.kind == "child" and module is not None:
            name = path_below(block, module)
        elif step.kind == "function" and module is None and node.op.startswith("call_"):
            name = function_name(node)
        else:
            continue
        if name == step.name:
            matches.append((node.meta["index"], node))
    if step.kind == "child":
        called: list[Call] = flow.calls_in.get(root, [])
        for call in called:
            if call.node is not None and path_below(block, call.module) == step.name:
                matches.append((call.start, call.node))
    matches.sort(key=lambda each: each[0])
    if len(matches) <= step.occurrence:
        raise UnfaithfulError(f"{step.name!r} is in no method of its own")
    node = matches[step.occurrence][1]
    if node not in flow.inputs:
        raise UnfaithfulError(f"{step.name!r} is something else on another way")
    return node


def _argument(flow: Flow, value: fx.Node | None, taker: fx.Node) -> int:
    """Return the place of the value among the arguments of the step."""

    def is_it(argument: object) -> bool:
        if not isinstance(argument, fx.Node):
            return False
        if value is None:
            return argument.op == "placeholder"
        return argument is value or flow.becomes(argument, value)

    places = [i for i, each in enumerate(taker.args) if is_it(each)]
    if len(places) != 1:
        raise UnfaithfulError("it is not clear which operand it is")
    return places[0]


def _operand_at(node: ast.AST, place: int, *, is_method: bool) -> ast.expr | None:
    """Return an operand of an addition or of a call."""
    if isinstance(node, ast.BinOp) and place < 2:
        return (node.left, node.right)[place]
    if isinstance(node, ast.AugAssign) and place == 1:
        return node.value
    if not isinstance(node, ast.Call):
        return None
    if is_method and place == 0:
        return node.func.value if isinstance(node.func, ast.Attribute) else None
    place -= is_method
    given = node.args[: place + 1]
    is_there = len(given) > place and not any(isinstance(each, ast.Starred) for each in given)
    return given[place] if is_there else None


def _node_at(known: Definition, code: types.CodeType, offset: int) -> ast.expr | ast.stmt:
    """Return what the instruction at the offset evaluates."""
    positions: Any = getattr(code, "co_positions", None)
    if positions is None:
        raise UnfaithfulError("Python before 3.11 does not tell where in a line something is")
    line, last, start, end = list(positions())[offset // 2]
    if line is None or last is None or start is None or end is None:
        raise UnfaithfulError("the code does not tell where it stands")
    first = known.node.lineno
    where = (line - first, start, last - first, end)
    alike = [each for each in ast.walk(known.node) if isinstance(each, _EVALUATED)]
    for each in alike:
        if known.range(each) == where:
            return each
    for each in alike:  # of a method's call over several lines the last alone count
        if isinstance(each, ast.Call) and known.range(each)[2:] == where[2:]:
            return each
    raise UnfaithfulError("its place in the code is not that of an expression")


_EVALUATED = (ast.Call, ast.BinOp, ast.AugAssign, ast.Subscript, ast.UnaryOp, ast.Attribute)


def _around(outer: ast.AST, inner: ast.AST) -> list[ast.AST]:
    """Return what is around ``inner`` within ``outer``."""
    for child in ast.iter_child_nodes(outer):
        if child is inner:
            return [outer]
        if found := _around(child, inner):
            return [outer, *found]
    return []
