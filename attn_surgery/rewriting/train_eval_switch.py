"""The graphs of a forward as a method: one for both modes, or one that asks the mode."""

from __future__ import annotations

from typing import Any

from torch import fx

from attn_surgery.host import compiled


def as_methods(graphs: tuple[fx.Graph, ...], own: str) -> dict[str, Any]:
    """Return the graphs as methods, by name; ``own`` is the one that calls run."""
    codes: list[Any] = [graph.python_code("self") for graph in graphs]
    if len({code.src for code in codes}) == 1:
        return {own: compiled(codes[0].src, codes[0].globals, "forward")}
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
    return {**methods, own: compiled(chosen, evaluation.globals, "forward")}
