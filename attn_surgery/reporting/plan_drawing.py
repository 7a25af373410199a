"""A plan as a picture: the host's stages and blocks, what goes in where, and what that costs."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from attn_surgery.errors import SurgeryError, check_choice, one_line
from attn_surgery.host import Input, InputSize, as_input, check_folder
from attn_surgery.planning import Plan
from attn_surgery.reporting.drawing import (
    COSTS,
    Costs,
    blocks_of,
    imported,
    page,
    picture,
    svg,
    write_png,
)
from attn_surgery.reporting.report import report
from attn_surgery.reporting.rows import SiteCost

LONG = 48
"""Where there are more blocks, those that are alike are drawn as one unless asked otherwise."""
ENDINGS = (".svg", ".png", ".html")


def draw_plan(
    plan: Plan,
    path: str | Path,
    *,
    host: nn.Module | None = None,
    input_size: InputSize | Input | None = None,
    name: str | None = None,
    cost: str = "params",
    fold: bool | None = None,
) -> None:
    """Draw a plan to a file: a box for each residual block, by stage, in forward order.

    Blocks that get attention are filled, those that hold some already have a second rim, skipped
    ones are hollow; why they are skipped is said on hover and below. With a host a bar tells what
    the attention adds at each site, counted as `attn_surgery.report` does.

    Args:
        plan: The plan.
        path: The file: ``.svg``, ``.html`` (the same with a table below) or ``.png``.
        host: What was planned for; left as it is. It may be on the meta device.
        input_size: As for `attn_surgery.report`.
        name: What to call the host; by default the name of its class.
        cost: What the bars tell: ``params``, ``macs``, ``elementwise`` (operations) or ``moved``
            (bytes).
        fold: Draw blocks that follow each other and are alike as one; by default where there are
            more than 48.

    Raises:
        SurgeryError: The file ends otherwise or cannot be written, there is no such cost, or the
            plan does not fit the host.

    Example:
        >>> import tempfile, torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> plan = attn_surgery.plan(host, "se", existing="stack")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_plan(plan, f"{folder}/plan.svg", host=host, name="resnet18")
        ...     Path(f"{folder}/plan.svg").read_text().count("<title>layer4")
        2
    """
    path = Path(path)
    check_drawing(path)
    check_choice("cost", cost, tuple(COSTS))
    name = name or ("plan" if host is None else type(host).__name__)
    costs, notes = None, []
    if host is not None and plan.sites:
        costs, notes = _counted(plan, host, name, as_input(input_size, host), cost)
    order = [] if host is None else [path for path, _ in host.named_modules()]
    if fold is None:
        fold = len({site.block for site in (*plan.sites, *plan.skipped)}) > LONG
    blocks = blocks_of(plan, costs and costs.by_block, order=order, fold=fold)
    drawn = picture(_title(plan, name), blocks, costs, notes)
    form = path.suffix.lower()
    try:
        if form == ".png":
            write_png(drawn, path)
        else:
            text = f"{svg(drawn)}\n" if form == ".svg" else page(drawn, blocks, costs)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SurgeryError(f"cannot write {path}: {one_line(error)}") from error


def check_drawing(path: Path) -> None:
    """Refuse a picture that could not be drawn, before any work.

    Raises:
        SurgeryError: The file ends otherwise than in `ENDINGS`, there is no folder for it, or
            Matplotlib is missing for a PNG.
    """
    if path.suffix.lower() not in ENDINGS:
        raise SurgeryError(f"cannot draw to {path}: end it in one of {', '.join(ENDINGS)}")
    check_folder(path)
    if path.suffix.lower() == ".png":
        imported("matplotlib.figure")


def _counted(
    plan: Plan, host: nn.Module, name: str, given: Input, cost: str
) -> tuple[Costs | None, list[str]]:
    """Return what the sites cost, if it can be counted, and what has to be said about it."""
    counted = report(host, plan, input_size=given, name=name, latency=False, per_site=True)
    if errors := [row.error for row in counted.rows if row.error]:
        return None, [f"what it costs is not known: {errors[0]}"]
    values = {each.block: _of(each, cost) for each in counted.per_site}
    by_block = {block: value for block, value in values.items() if block is not None}
    costs = Costs(cost, by_block, sum(values.values()))
    about = [f"counted for one input of {given} in evaluation mode", *counted.notes]
    return costs, [] if cost == "params" else about  # parameters depend on no input


def _of(spent: SiteCost, cost: str) -> int:
    return {
        "params": spent.params,
        "macs": spent.macs,
        "elementwise": spent.elementwise_ops,
        "moved": spent.bytes_moved,
    }[cost]


def _title(plan: Plan, name: str) -> str:
    labels = list(dict.fromkeys(map(str, plan.assignments)))
    attention = ", ".join(labels[:4]) + ", ..." * (len(labels) > 4)
    return f"{name} + {attention}" if attention else name
