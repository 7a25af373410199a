"""The forwards that are rewritten, each once for all blocks that are alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import nn

from attn_surgery.finding import Finding, Step
from attn_surgery.host import (
    entry_name,
    likeness,
    public_methods_run,
    run_by_other_methods,
    runs_its_children,
)
from attn_surgery.rewriting import (
    Expression,
    Insertion,
    Original,
    Rewritten,
    UnfaithfulError,
    alteration_of,
    as_host,
    expression_of,
    insert_alike,
    is_graph_module,
    original,
    value_name,
)


class Forwards:
    """The forwards that are rewritten; blocks that are built alike share one."""

    def __init__(self) -> None:
        self._originals: _Remembered[Original] = _Remembered()
        self._expressions: _Remembered[tuple[Expression, frozenset[Step]]] = _Remembered()
        self._rewritten: dict[object, Rewritten] = {}
        self._others: dict[object, tuple[frozenset[str], bool]] = {}

    def original(self, block: nn.Module) -> Original:
        """Trace the forward of ``block``, or return the trace of a block like it.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if (done := alteration_of(block)) and done.wrappings:
            raise UnfaithfulError("its source was wrapped before")
        return self._originals.get(likeness(block), block, lambda: original(block))

    def expression(self, block: nn.Module, finding: Finding) -> tuple[Expression, frozenset[Step]]:
        """Return the expression in the block's own source that the attention goes around.

        With it comes what makes its value on other ways through the block.

        Raises:
            UnfaithfulError: There is none.
        """
        if is_graph_module(block):
            raise UnfaithfulError("it runs a graph")
        if (done := alteration_of(block)) and done.insertions:
            raise UnfaithfulError("its forward was rewritten before")
        if runs_its_children(block):
            raise UnfaithfulError("its forward reaches all its children")
        key = likeness(block), finding.spot
        return self._expressions.get(key, block, lambda: expression_of(block, finding))

    def has_other_methods(self, block: nn.Module) -> bool:
        """Tell whether others may run a part of the block by another method than its forward."""
        read, is_public = self._beside(block)
        return bool(read) or is_public

    def is_run_without(self, block: nn.Module, finding: Finding, child: str) -> bool:
        """Tell whether others may make the value without the forward, with what a child does.

        They may where the forward has it made in a public method, and where a public method that
        the forward does not call runs the child, too.

        Args:
            block: The block.
            finding: What was found in it.
            child: The path of a module in it.
        """
        read, is_public = self._beside(block)
        is_read = child.partition(".")[0] in read
        return is_read or (is_public and self._is_in_another_method(block, finding))

    def _beside(self, block: nn.Module) -> tuple[frozenset[str], bool]:
        """Return the children that other methods run, and whether the forward calls public ones."""
        key = likeness(block)
        if key not in self._others:
            self._others[key] = run_by_other_methods(block), bool(public_methods_run(block))
        return self._others[key]

    def _is_in_another_method(self, block: nn.Module, finding: Finding) -> bool:
        """Tell whether the value is made in a method that others may call without the forward."""
        try:
            expression, _ = self.expression(block, finding)
        except UnfaithfulError:
            return False
        return expression.method != entry_name(type(block))

    def rewrite(self, block: nn.Module, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Rewrite the forward of ``block``, or return what a block like it got.

        Args:
            block: Operated on before perhaps: what was inserted then is inserted again.
            insertions: Those to be added.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        done = alteration_of(block)
        insertions = (*(done.insertions if done else ()), *insertions)
        key = likeness(block), insertions
        if key not in self._rewritten:
            self._rewritten[key] = self.original(block).with_attention(insertions)
        return self._rewritten[key]

    def try_one(self, block: nn.Module, insertion: Insertion) -> str:
        """Rewrite the forward of ``block`` with the insertion.

        Returns:
            The name of the value that the attention receives.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if is_graph_module(block):
            return value_name(block.graph, insertion)
        return self.rewrite(block, (insertion,)).after[-1]

    def try_together(self, block: nn.Module, insertions: list[Insertion]) -> list[str]:
        """Return, for each insertion, why it does not go with those before it, or ""."""
        reasons: list[str] = []
        accepted: list[Insertion] = []
        graph = copy.deepcopy(block.graph) if is_graph_module(block) else None
        for each in insertions:
            try:
                if graph is not None:
                    insert_alike([graph], each)
                else:
                    self.rewrite(block, (*accepted, each))
            except UnfaithfulError as error:
                reasons.append(f"cannot be rewritten together with others in its block: {error}")
            else:
                reasons.append("")
                accepted.append(each)
        return reasons


T = TypeVar("T")


class _Remembered(Generic[T]):
    """What was found for blocks that are alike, or why it was not."""

    def __init__(self) -> None:
        self._found: dict[object, tuple[T | None, str]] = {}
        """With the reason as text: the error itself would hold the frames, and the host."""

    def get(self, key: object, block: nn.Module, find: Callable[[], T]) -> T:
        if key not in self._found:
            try:
                with as_host(block):
                    self._found[key] = find(), ""
            except UnfaithfulError as error:
                self._found[key] = None, str(error)
        found, reason = self._found[key]
        if found is None:
            raise UnfaithfulError(reason)
        return found
