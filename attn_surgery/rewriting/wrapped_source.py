"""A method compiled anew from the host's own source, some of its expressions passed to attention.

Everything else of the method stays: its lines, its globals and closure, whatever its control flow.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from attn_surgery.host import noted
from attn_surgery.rewriting.insertion import UnfaithfulError, maps_first, maps_last

Range = tuple[int, int, int, int]
"""First line, first column, last line and the column after the last; columns count bytes."""


@dataclass(frozen=True)
class Expression:
    """An expression in the source of a method.

    Attributes:
        method: The name of the method in the class.
        range: Where it stands, its lines counted from that of the method's ``def``.
        text: What stands there.
        is_changed: Whether it is a name, and what takes its value changes that in place: so does
            the attention then, as others may have the value by another name.
    """

    method: str
    range: Range
    text: str
    is_changed: bool = False


@dataclass(frozen=True)
class Wrapping:
    """An expression whose value passes through an attention.

    Attributes:
        attention: The name of the attention among the module's children.
        around: The expression.
        channels_last_dims: The number of spatial dims of a value ``(N, *spatial, C)``; 0 for
            ``(N, C, *spatial)``.
        is_only_read: Whether what is called there returns what it is given.
    """

    attention: str
    around: Expression
    channels_last_dims: int = 0
    is_only_read: bool = False


@dataclass(frozen=True)
class Definition:
    """What the source says of a function.

    Attributes:
        node: Its ``def``.
        lines: The lines from ``def`` to the end.
    """

    node: ast.FunctionDef
    lines: tuple[str, ...]

    def range(self, node: ast.expr | ast.stmt) -> Range:
        """Return where something in the function stands."""
        return range_of(node, self.node.lineno)

    def text(self, where: Range) -> str:
        """Return what stands there."""
        first, start, last, end = where
        if last >= len(self.lines):
            return ""
        lines = [line.encode() for line in self.lines[first : last + 1]]
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][start:]
        return b"".join(lines).decode()


def range_of(node: ast.expr | ast.stmt, first: int) -> Range:
    """Return where something stands, its lines counted from ``first``."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.lineno - first, node.col_offset, node.end_lineno - first, node.end_col_offset


def definition(function: types.FunctionType) -> Definition:
    """Read the source of a function.

    Raises:
        UnfaithfulError: It is not there, or is not what runs.
    """
    code, text = function.__code__, _text_around(function)
    found = _definition_in(text, code.co_name, code.co_firstlineno)
    if found is None:
        raise UnfaithfulError(f"the source of {function.__qualname__} is not there")
    if not _is_alike(code, _compiled(code, text, (), "")):
        raise UnfaithfulError(f"the source of {function.__qualname__} is not what runs")
    return found


def _text_around(function: types.FunctionType) -> str:
    return "".join(linecache.getlines(function.__code__.co_filename, function.__globals__))


@functools.lru_cache(maxsize=256)
def _definition_in(text: str, name: str, first: int) -> Definition | None:
    """Return the definition that begins, decorators included, at a line."""
    node = _find(_parsed(text), name, first)
    if node is None:
        return None
    lines = text.splitlines(keepends=True)
    return Definition(node, tuple(lines[node.lineno - 1 : node.end_lineno]))


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module([], [])


def _find(tree: ast.Module, name: str, first: int) -> ast.FunctionDef | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            lines = [node.lineno, *(each.lineno for each in node.decorator_list)]
            if min(lines) == first:
                return node
    return None


@functools.lru_cache(maxsize=256)
def _compiled(
    code: types.CodeType, text: str, wrappings: tuple[Wrapping, ...], receiver: str
) -> types.CodeType:
    """Compile the file, attention around some expressions of one function, and return that."""
    tree = _parsed(text)
    node = _find(tree, code.co_name, code.co_firstlineno)
    assert node is not None
    for each in wrappings:
        _Wrapper(node.lineno, each, receiver).visit(node)
    whole = compile(ast.fix_missing_locations(tree), code.co_filename, "exec", dont_inherit=True)
    first = code.co_firstlineno
    alike = (each for each in codes_in(whole) if each.co_name == code.co_name)
    return next(each for each in alike if each.co_firstlineno == first)


def _is_alike(code: types.CodeType, other: types.CodeType) -> bool:
    """Tell whether two codes do the same, but for asserts, which a test runner may spell out."""
    if code.co_varnames[: code.co_argcount] != other.co_varnames[: other.co_argcount]:
        return False
    if any("@py" in name for name in code.co_varnames):
        return set(other.co_names) <= {*code.co_names, "AssertionError"}
    same = (code.co_code, code.co_names) == (other.co_code, other.co_names)
    return (
        same
        and len(code.co_consts) == len(other.co_consts)
        and all(
            _is_alike(a, b)
            if isinstance(a, types.CodeType) and isinstance(b, types.CodeType)
            else a == b
            for a, b in zip(code.co_consts, other.co_consts, strict=True)
        )
    )


def wrapped(function: types.FunctionType, wrappings: Sequence[Wrapping]) -> types.FunctionType:
    """Compile a method with attention around some of its expressions.

    What runs stands in the host's file, line by line; `inspect` and TorchScript read the text with
    the attention in it.

    Args:
        function: The method as the host has it.
        wrappings: The expressions, all of this method; of one that is there twice, the later
            attention gets what the earlier one returns.

    Raises:
        UnfaithfulError: Its source is not there, or the expressions are not in it any more.
    """
    known = definition(function)
    for each in wrappings:
        if known.text(each.around.range) != each.around.text:
            raise UnfaithfulError(f"{each.around.text!r} is not there in {function.__qualname__}")
    receiver = function.__code__.co_varnames[0]
    code = _compiled(function.__code__, _text_around(function), tuple(wrappings), receiver)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    functools.update_wrapper(new, function)
    new.__kwdefaults__ = function.__kwdefaults__
    vars(new)["__signature__"] = inspect.signature(function)
    vars(new)["__wrapped__"] = _to_be_read(_spliced(known, wrappings, receiver), function)
    return new


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the codes that are defined in a code."""
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from codes_in(each)


def _to_be_read(text: str, function: types.FunctionType) -> types.FunctionType:
    """Return a function, never to be called, whose source is the text."""
    text = textwrap.dedent(text)
    whole = compile(text, noted(text), "exec", dont_inherit=True)
    code = next(each for each in codes_in(whole) if each.co_name == function.__name__)
    return types.FunctionType(code, function.__globals__)


def _spliced(known: Definition, wrappings: Sequence[Wrapping], receiver: str) -> str:
    """Return the text of the function with the calls of the attentions in it."""
    lines = [line.encode() for line in known.lines]
    inserted: list[tuple[tuple[int, ...], bytes]] = []
    changed = filter(None, map(_changed_name, ast.walk(known.node)))
    targets = {known.range(each) for each in changed}
    for number, each in enumerate(wrappings):
        before, after = _around(each, receiver)
        first, start, last, end = each.around.range
        if each.around.range in targets:
            before, after = f"{before}{each.around.text}{after}; ", ""
        # at one place, what is around more comes first where it opens, and last where it closes
        inserted.append(((first, start, 1, -last, -end, -number), before.encode()))
        inserted.append(((last, end, 0, -first, -start, number), after.encode()))
    for (line, column, *_), text in sorted(inserted, reverse=True):
        lines[line] = lines[line][:column] + text + lines[line][column:]
    return b"".join(lines).decode()


def _around(wrapping: Wrapping, receiver: str) -> tuple[str, str]:
    """Return what stands before and after an expression that an attention is around."""
    before, after = f"{receiver}.{wrapping.attention}(", ")"
    if dims := wrapping.channels_last_dims:
        first, last = (", ".join(map(str, to(dims))) for to in (maps_first, maps_last))
        before, after = f"{before}(", f").permute({first})){after[1:]}.permute({last})"
    if wrapping.around.is_changed and not wrapping.is_only_read:
        return f"{wrapping.around.text}.copy_({before}", f".clone(){after})"
    return before, after


def _attended(node: ast.expr, wrapping: Wrapping, receiver: str) -> ast.expr:
    """Return the expression with the attention's call around it, at the same place."""
    marker = "_the_expression"
    before, after = _around(wrapping, receiver)
    call = ast.parse(f"{before}{marker}{after}", mode="eval").body
    for each in ast.walk(call):
        if isinstance(each, ast.expr):
            ast.copy_location(each, node)
    return _Replacing(marker, node).visit(call)


class _Replacing(ast.NodeTransformer):
    def __init__(self, name: str, by: ast.expr):
        self.name = name
        self.by = by

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.by if node.id == self.name else node


def wrapped_methods(
    module: nn.Module, wrappings: Sequence[Wrapping]
) -> dict[str, types.FunctionType]:
    """Compile the methods of a module with attention around some of their expressions.

    Args:
        module: As the host has it.
        wrappings: The expressions.

    Raises:
        UnfaithfulError: As `wrapped` does.
    """
    inside: dict[str, list[Wrapping]] = {}
    for each in wrappings:
        inside.setdefault(each.around.method, []).append(each)
    methods: dict[str, types.FunctionType] = {}
    for name, several in inside.items():
        function = getattr(module, name, None)
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType):
            raise UnfaithfulError(f"{name!r} is no method of its own")
        methods[name] = wrapped(function, several)
    return methods


class _Wrapper(ast.NodeTransformer):
    """Puts the call of an attention around an expression."""

    def __init__(self, first: int, wrapping: Wrapping, receiver: str):
        self.first = first
        self.wrapping = wrapping
        self.receiver = receiver

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        if isinstance(node, ast.expr) and self._is_it(node):
            return _attended(node, self.wrapping, self.receiver)
        name = _changed_name(node)
        if name is not None and self._is_it(name):
            held = ast.copy_location(ast.Name(name.id, ast.Load()), node)
            first = ast.Expr(_attended(held, self.wrapping, self.receiver))
            return [ast.copy_location(first, node), node]
        return self.generic_visit(node)

    def _is_it(self, node: ast.expr) -> bool:
        return range_of(node, self.first) == self.wrapping.around.range


def _changed_name(node: ast.AST) -> ast.Name | None:
    """Return the name of ``name += value`` or the like, where no call can stand for it."""
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        return node.target
    return None
