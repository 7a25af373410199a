"""The forwards that are rewritten, each once for all blocks that are alike."""

from __future__ import annotations

import copy

from torch import nn

from attn_surgery.finding import Finding
from attn_surgery.host import likeness
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
        self._originals: dict[object, Original | str] = {}
        """Or why it cannot be rewritten: the error itself would hold the frames, and the host."""
        self._rewritten: dict[object, Rewritten] = {}
        self._expressions: dict[object, Expression | str] = {}

    def original(self, block: nn.Module) -> Original:
        """Trace the forward of ``block``, or return the trace of a block like it.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if (done := alteration_of(block)) and done.wrappings:
            raise UnfaithfulError("its source was wrapped before")
        alike = likeness(block)
        if alike not in self._originals:
            try:
                with as_host(block):
                    self._originals[alike] = original(block)
            except UnfaithfulError as error:
                self._originals[alike] = str(error)
        known = self._originals[alike]
        if isinstance(known, str):
            raise UnfaithfulError(known)
        return known

    def rewritten(self, block: nn.Module, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Rewrite the forward of ``block``, or return what a block like it got.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        key = likeness(block), insertions
        if key not in self._rewritten:
            self._rewritten[key] = self.original(block).with_attention(insertions)
        return self._rewritten[key]

    def expression(self, block: nn.Module, finding: Finding) -> Expression:
        """Return the expression in the block's own source that the attention goes around.

        Raises:
            UnfaithfulError: There is none.
        """
        if is_graph_module(block):
            raise UnfaithfulError("it runs a graph")
        if (done := alteration_of(block)) and done.insertions:
            raise UnfaithfulError("its forward was rewritten before")
        key = likeness(block), finding.spot
        if key not in self._expressions:
            try:
                with as_host(block):
                    self._expressions[key] = expression_of(block, finding.spot)
            except UnfaithfulError as error:
                self._expressions[key] = str(error)
        known = self._expressions[key]
        if isinstance(known, str):
            raise UnfaithfulError(known)
        return known

    def value(self, block: nn.Module, insertion: Insertion) -> str:
        """Return the name of the value that the insertion would receive.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if is_graph_module(block):
            return value_name(block.graph, insertion)
        return self.rewritten(block, (*_done_in(block), insertion)).after[-1]

    def fitting(self, block: nn.Module, insertions: list[Insertion]) -> list[str]:
        """Return, for each insertion, why it does not go with those before it, or ""."""
        reasons, accepted = [], list(_done_in(block))
        graph = copy.deepcopy(block.graph) if is_graph_module(block) else None
        for each in insertions:
            try:
                if graph is not None:
                    insert_alike([graph], each)
                else:
                    self.rewritten(block, (*accepted, each))
            except UnfaithfulError as error:
                reasons.append(f"cannot be rewritten together with others in its block: {error}")
            else:
                reasons.append("")
                accepted.append(each)
        return reasons


def _done_in(block: nn.Module) -> tuple[Insertion, ...]:
    done = alteration_of(block)
    return done.insertions if done is not None else ()
