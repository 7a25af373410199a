"""The third way to cut a site: an expression in the host's own source, wrapped where it stands."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import operator
import sys
import traceback
from typing import Any

import pytest
import torch
from probing import calls
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery import SurgeryError

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python does not tell where in a line something is"
)
C = 8
MARK = "h = torch.tanh(self.b(h))  # the branch ends here"


class Block(nn.Module):
    """Asks its data for a truth, and ends its branch in a function."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(C, C, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h * factor
        h = torch.tanh(self.b(h))  # the branch ends here
        return x + h


class Scriptable(Block):
    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        h = torch.relu(self.a(x))
        if bool(x.sum() > 0):
            h = h * factor
        h = torch.tanh(self.b(h))
        return x + h


class Inherits(Block):
    """Calls what it overrides: the wrapped method has the closure that super() needs."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = super().forward(x, factor)
        if h.sum() > 0:
            h = h * factor
        return h + torch.tanh(self.b(torch.relu(self.a(h))))


def model(kind: type[nn.Module] = Block) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, C, 1), kind()).eval()


def moved(host: Any) -> Any:
    for attention in attn_surgery.inserted(host).values():
        for parameter in attention.parameters():
            nn.init.normal_(parameter)
    return host


def attended(kind: type[nn.Module] = Block, attention: str = "cbam", **asked: Any) -> Any:
    host = attn_surgery.apply(model(kind), attention, **asked)
    assert {site.method for site in attn_surgery.plan(model(kind), **asked).sites} == {"wrap"}
    return moved(host)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def by_hand(host: Any, x: Tensor) -> Tensor:
    stem, block = host.children()
    x = stem(x)
    h = torch.relu(block.a(x))
    return x + block.attn(torch.tanh(block.b(h)))


def test_the_branch_is_attended_and_nothing_else():
    host = attended()
    for x in (X, -X):
        assert torch.equal(host(x), by_hand(host, x))


@pytest.mark.parametrize("position", ["standard", "post", "identity"])
def test_every_position(position: str):
    host, operated = model(), model()
    sites = attn_surgery.plan(operated, position=position).sites
    assert len(sites) == 1
    attn_surgery.apply(operated, "cbam", position=position)
    assert torch.equal(operated(X), host(X))
    assert not torch.equal(moved(operated)(X), host(X))
    attn_surgery.remove(operated)
    assert torch.equal(operated(X), host(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted():
    host = attended(Scriptable)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(host), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    for x in (X, -X):
        torch.testing.assert_close(scripted(x), host(x))


def test_compiled():
    host = attended()
    compiled = torch.compile(host, backend="eager")
    with torch.no_grad():
        for x in (X, -X):
            torch.testing.assert_close(compiled(x), host(x))
    torch.compiler.reset()


def test_the_source_is_shown_with_the_attention():
    block = attended()[1]
    shown = inspect.getsource(block.forward)
    assert "h = self.attn(torch.tanh(self.b(h)))  # the branch ends here" in shown
    assert inspect.signature(block.forward) == inspect.signature(Block().forward)
    assert block.forward.__doc__ == Block.forward.__doc__
    assert block.forward.__qualname__ == Block.forward.__qualname__


def test_a_traceback_names_the_file_and_the_line_of_the_host():
    block = attended()[1]
    lines, first = inspect.getsourcelines(Block.forward)
    line = first + next(i for i, each in enumerate(lines) if MARK in each)
    block.b = nn.Linear(1, 1)
    with pytest.raises(RuntimeError) as caught:
        block(torch.randn(1, C, 8, 8))
    frames = traceback.extract_tb(caught.value.__traceback__)
    mine = [each for each in frames if each.name == "forward" and each.filename == __file__]
    assert [each.lineno for each in mine] == [line]
    assert mine[0].line == MARK


def test_a_debugger_stops_where_the_code_stands():
    host, seen = attended(), set()

    def watch(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename == __file__ and event == "line":
            seen.add(frame.f_lineno)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        host(X)
    finally:
        sys.settrace(before)
    lines, first = inspect.getsourcelines(Block.forward)
    assert first + next(i for i, each in enumerate(lines) if MARK in each) in seen


def test_what_the_class_says_later_counts():
    """Globals and class attributes are read when forward runs, as they were."""
    host = attended()
    before = host(X)
    host[1].b = nn.Conv2d(C, C, 3, padding=1)
    assert not torch.equal(host(X), before)
    assert torch.equal(host(X), by_hand(host, X))


def test_super_works_in_a_wrapped_method():
    host, operated = model(Inherits), attended(Inherits)
    assert len(attn_surgery.inserted(operated)) == 1
    operated = attn_surgery.remove(operated)
    assert torch.equal(operated(X), host(X))


def test_two_attentions_at_one_place():
    host = attended(attention="se")
    before = host(X)
    attn_surgery.apply(host, "eca", existing="stack")
    assert torch.equal(host(X), before)
    moved(host)
    again = copy.deepcopy(host)
    assert torch.equal(again(X), host(X))
    attn_surgery.remove(host)
    assert torch.equal(host(X), model()(X))


def test_saved_and_loaded(tmp_path: Any):
    host = attended()
    attn_surgery.save(host, tmp_path / "attention.safetensors")
    loaded = attn_surgery.load(model(), tmp_path / "attention.safetensors")
    assert torch.equal(loaded(X), host(X))


def test_a_forward_that_is_patched_later_is_wrapped_or_refused():
    host = attended()

    def forward(self: Any, x: Tensor) -> Tensor:
        return x + torch.tanh(self.b(self.a(x)))

    before = host(X)
    with pytest.raises(SurgeryError, match="cannot be rewritten as it is now"):
        host[1].forward = forward.__get__(host[1])
    assert torch.equal(host(X), before)


class ByMode(Block):
    """Ends at another place in either mode: what takes both is wrapped."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = self.a(x)
        if x.sum() > 0:
            h = h * factor
        h = torch.tanh(self.b(h)) if self.training else torch.tanh(self.b(h * 1))
        return x + h


class ByModeScaled(Block):
    """Nothing takes both ends as they are."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = self.a(x)
        if x.sum() > 0:
            h = h * factor
        if self.training:
            return x + 2 * torch.tanh(self.b(h))
        return x + 0.5 * torch.tanh(self.b(h * 1))


def test_both_modes_are_attended():
    host = attended(ByMode)
    assert "x + self.attn(h)" in inspect.getsource(host[1].forward)
    for training in (False, True):
        assert not torch.equal(host.train(training)(X), model(ByMode).train(training)(X))


class Static(Block):
    """A helper whose first argument is no module."""

    @staticmethod
    def end(h: Tensor) -> Tensor:
        return torch.tanh(h)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h * factor
        return x + self.end(self.b(h))


def test_a_static_method_is_no_method_of_a_module():
    host = attended(Static)
    assert "x + self.attn(self.end(self.b(h)))" in inspect.getsource(host[1].forward)
    assert not torch.equal(host(X), model(Static)(X))


def joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second]).sum(0)


def both(first: Tensor, second: Tensor) -> Any:
    return first + second, second


class Outside(Block):
    """The branch ends in a function of the host's file, which returns what it makes."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h * factor
        h = joined(self.b(h), h)
        return x + torch.dropout(h, 0.0, self.training)


def halved(h: Tensor) -> Tensor:
    return 0.5 * h


class WrittenInAMethod(Block):
    """What is changed in place is no expression; the call that returns it is one."""

    def branch(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(x)))
        out = torch.empty_like(h)
        out[:, :4] = h[:, 4:]
        out[:, 4:] = h[:, :4]
        return out

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        if x.sum() > 0:
            x = x * factor
        return x + halved(self.branch(x))


class End(Block):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return torch.tanh(self.b(torch.relu(self.a(x))))


class BelowEnd(End):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        if x.sum() > 0:
            x = x * factor
        return x + super().forward(x)


class OutsideWithMore(Block):
    """The function returns more than the value."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h * factor
        h, _ = both(self.b(h), h)
        return x + torch.dropout(h, 0.0, self.training)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (Outside, "h = self.attn(joined(self.b(h), h))"),
        (WrittenInAMethod, "x + halved(self.attn(self.branch(x)))"),
        (BelowEnd, "return x + self.attn(super().forward(x))"),
        (OutsideWithMore, "torch.dropout(self.attn(h), 0.0, self.training)"),
    ],
)
def test_what_another_function_returns(kind: Any, shown: str):
    host = attended(kind)
    assert shown in inspect.getsource(host[1].forward)
    for training in (False, True):
        assert not torch.equal(host.train(training)(X), model(kind).train(training)(X))


class CalledForIt(Block):
    """The operation stands in what is called, which takes its operands in its own way."""

    def branch(self, x: Tensor, factor: float) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h * factor
        return torch.tanh(self.b(h))


class ByReduce(CalledForIt):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return functools.reduce(operator.add, [self.branch(x, factor), x])


class ByPartial(CalledForIt):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return functools.partial(torch.add, x)(self.branch(x, factor))


class ByMethodCaller(CalledForIt):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return operator.methodcaller("add", x)(self.branch(x, factor))


class BySum(CalledForIt):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return sum((self.branch(x, factor), x))  # type: ignore[return-value]


class ByKeyword(CalledForIt):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return torch.add(input=self.branch(x, factor), other=x)


@pytest.mark.parametrize("kind", [ByReduce, ByPartial, ByMethodCaller, BySum, ByKeyword])
@pytest.mark.parametrize("position", ["standard", "identity"])
def test_the_operand_itself_is_attended(kind: type[CalledForIt], position: str):
    host = attended(kind, position=position)
    stem, block = host.children()
    for x in (X, -X):
        x = stem(x)
        f = CalledForIt.branch(block, x, 1.0)
        expected = x + block.attn(f) if position == "standard" else block.attn(x) + f
        torch.testing.assert_close(block(x), expected)


class TwoBranchesByReduce(CalledForIt):
    """The branch is a sum that no expression is worth alone."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        f, g = self.branch(x, factor), torch.tanh(self.a(x))
        return functools.reduce(operator.add, [f, g, x])


class Loop(Block):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        for _ in range(2):
            if x.sum() > 0:
                x = x * 1
            x = x + torch.tanh(self.b(torch.relu(self.a(x))))
        return x


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1))


class MultipliesMoreInTraining(Block):
    """What is multiplied first in training is a tuple of sizes."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        with torch.enable_grad():
            f = self.b(torch.relu(self.a(x)))
            if self.training:
                f = noisy(f)
            return f + 0.7 * x


def of_text() -> type[nn.Module]:
    """Return a class whose source nobody can read."""
    scope: dict[str, Any] = {"torch": torch, "Block": Block}
    text = inspect.getsource(Block.forward)
    exec(f"class Unread(Block):\n{text}", scope)
    return scope["Unread"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (lambda: TwoBranchesByReduce, "nor wrapped .*it is no operand of 'functools.reduce"),
        (lambda: Loop, "nor wrapped .*is in a loop"),
        (lambda: ByModeScaled, "nor wrapped .*several places in the code"),
        (of_text, "nor wrapped .*the source of Unread.forward is not there"),
    ],
)
def test_what_cannot_be_wrapped_says_why(kind: Any, reason: str):
    plan = attn_surgery.plan(model(kind()))
    assert not plan.sites
    with pytest.raises(SurgeryError, match=reason):
        attn_surgery.apply(model(kind()))


def test_a_step_that_is_another_one_in_training_is_not_wrapped():
    host = model(MultipliesMoreInTraining)
    (site,) = attn_surgery.plan(host, position="identity").skipped
    assert "nor wrapped ('mul' is something else on another way)" in site.reason
    assert len(attn_surgery.plan(host).sites) == 1


def test_a_source_that_is_not_what_runs(tmp_path: Any, monkeypatch: Any):
    text = "from test_wrapping import Block, Tensor, torch\n\n\nclass Changed(Block):\n"
    text += inspect.getsource(Block.forward)
    path = tmp_path / "changing.py"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    changing = __import__("changing")
    path.write_text(text.replace("relu", "abs"))
    with pytest.raises(SurgeryError, match="is not what runs"):
        attn_surgery.apply(model(changing.Changed))


class DropsInTraining(nn.Module):
    """What helpers return is the value in one mode, and more than it in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in "ab")
        self.act = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x))))

    def dropped(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return nn.functional.dropout(y, 0.3) if self.training else y

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.dropped(x)
        return x + (y if mask is None else y * mask)


@pytest.mark.parametrize("training", [False, True])
def test_the_place_is_one_that_both_modes_pass(training: bool) -> None:
    host, x = DropsInTraining().train(training), torch.randn(2, 8, 6, 6)
    torch.manual_seed(0)
    expected = host(x)
    (site,) = attn_surgery.plan(host, "se").sites
    assert site.method == "wrap"
    attn_surgery.apply(host, "se")
    torch.manual_seed(0)
    assert torch.equal(host(x), expected)
    assert calls(host, x) == 1


class Changing(Block):
    """Ends its branch in one of two functions, and adds to that in place."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        if h.size(1) == x.size(1): h += x  # fmt: skip  # noqa: E701
        return h


class ChangingAnother(Changing):
    """What is changed in place has other names, by which it is read later."""

    kept: Any = None

    def forward(self, x: Tensor, factor: float = 1.0) -> Any:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        self.kept = [h, h.flatten(1), h.detach()]
        if h.size(1) == x.size(1):
            h += x
        return h


def changed_by_hand(host: Any, x: Tensor) -> Tensor:
    stem, block = host.children()
    x = stem(x)
    h = block.b(torch.relu(block.a(x)))
    return block.attn(F.silu(h) if x.sum() > 0 else F.gelu(h)) + x


def test_what_a_name_held_before_it_is_changed():
    host = attended(Changing)
    assert torch.equal(host(X), changed_by_hand(host, X))
    assert torch.equal(host(-X), changed_by_hand(host, -X))
    shown = inspect.getsource(host[1].forward)
    assert "h.size(1) == x.size(1): h.copy_(self.attn(h.clone())); h += x  # fmt" in shown


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_name_that_is_changed_in_a_script():
    host = attended(Changing)
    scripted = torch.jit.script(host)
    for x in (X, -X):
        torch.testing.assert_close(scripted(x), host(x))


def test_what_another_name_holds_is_changed_with_it():
    host, before = attended(ChangingAnother), model(ChangingAnother)
    for x in (X, -X):
        assert torch.equal(host(x), changed_by_hand(host, x))
        seen, flat, detached = host[1].kept
        assert torch.equal(seen, host(x))
        assert torch.equal(flat, host(x).flatten(1))
        assert torch.equal(detached, host(x))
    attn_surgery.remove(host)
    assert torch.equal(host(X), before(X))


def test_a_name_that_is_changed_while_training():
    host, expected = attended(ChangingAnother).train(), attended(Changing).train()
    expected.load_state_dict(host.state_dict())
    for each in (host, expected):
        each(X).square().sum().backward()
    pairs = zip(host.parameters(), expected.parameters(), strict=True)
    for one, other in pairs:
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)


class AddingByMethod(Changing):
    """What the addition returns is not used: the branch itself is what is returned."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        h.add_(x)
        return h


class AddingInAMethod(AddingByMethod):
    def _add(self, h: Tensor, x: Tensor) -> None:
        h += x

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        self._add(h, x)
        return h


class AddingByFunction(AddingByMethod):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        return operator.iadd(h, x)


@pytest.mark.parametrize("kind", [AddingByMethod, AddingInAMethod, AddingByFunction])
def test_what_is_changed_is_returned(kind: type[nn.Module]):
    host = attended(kind)
    for x in (X, -X):
        assert torch.equal(host(x), changed_by_hand(host, x))


class ReadingAView(Changing):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        kept = h.detach()
        h += x
        return torch.relu(kept)


class WritingAPart(Changing):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        h[:] += x
        return h


class NoMoreItself(Changing):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        h = torch.relu(self.a(x))
        h = F.silu(self.b(h)) if bool(x.sum() > 0) else F.gelu(self.b(h))
        self = None  # pyright: ignore[reportAssignmentType]
        return h + x if h.size(1) == x.size(1) else h


@pytest.mark.parametrize("kind", [ReadingAView, WritingAPart, NoMoreItself])
def test_what_cannot_be_wrapped_is_skipped_or_the_same(kind: type[nn.Module]):
    host, before = model(kind), model(kind)
    if attn_surgery.plan(host).sites:
        attn_surgery.apply(host, "cbam")
    for x in (X, -X):
        assert torch.equal(host(x), before(x))
