"""What stands where in the syntax of a method."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import Any, TypeGuard

from attn_surgery.rewriting.insertion import UnfaithfulError
from attn_surgery.rewriting.wrapped_source import Definition

REPEATING = (
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.Lambda,
)
"""What runs what is in it again and again, or later."""


def operands(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the operands of an operation or a call, those in a list that it is given, too."""
    if isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
    elif isinstance(node, ast.AugAssign):
        yield from (node.target,) if isinstance(node.target, ast.Name) else ()
        yield node.value
    elif isinstance(node, (ast.Subscript, ast.Attribute)):
        yield node.value
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            yield node.func.value
        yield from operands(node.func) if isinstance(node.func, ast.Call) else ()
        for each in (*node.args, *(keyword.value for keyword in node.keywords)):
            yield from _unpacked(each)


def _unpacked(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, (ast.List, ast.Tuple)):
        for each in node.elts:
            yield from _unpacked(each)
    elif isinstance(node, ast.Dict):
        for each in node.values:
            yield from _unpacked(each)
    elif isinstance(node, ast.Starred):
        yield from _unpacked(node.value)
    else:
        yield node


def node_at(known: Definition, code: types.CodeType, offset: int) -> ast.expr | ast.stmt:
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


def is_value(node: ast.AST) -> TypeGuard[ast.expr]:
    """Tell whether it is an expression that is evaluated, and not one that is written to."""
    return isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store)


def around(outer: ast.AST, inner: ast.AST) -> list[ast.AST]:
    """Return what is around ``inner`` within ``outer``."""
    for child in ast.iter_child_nodes(outer):
        if child is inner:
            return [outer]
        if found := around(child, inner):
            return [outer, *found]
    return []
