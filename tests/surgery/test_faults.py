"""An exception at any line of the package: the host is as it was, whatever was to be done."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import hosts
import hosts_with_attention as held
import pytest
import torch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.rewriting.replaced_modules import replaced_by
from attn_surgery.tracing.tensor_factories import FACTORIES

PACKAGE = str(Path(attn_surgery.__file__).parent)


class FaultError(Exception):
    """One that no one knows."""


ERRORS = (KeyboardInterrupt, MemoryError, FaultError)


# Faults


class Traced:
    """Follows the lines of the package that run."""

    def run(self, call: Callable[[], Any]) -> BaseException | None:
        """Return what was raised."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        except BaseException as error:
            return error
        finally:
            sys.settrace(before)
        return None

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._step if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        raise NotImplementedError


class Lines(Traced):
    """Counts the lines of the package that run, and raises before one of them."""

    def __init__(self, at: int = 0, error: type[BaseException] = FaultError):
        self.passed = 0
        self.at = at
        self.error = error

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.passed += 1
            if self.passed == self.at:
                raise self.error
        return self._step


# Hosts


class Residual(nn.Sequential):
    """Runs its own children."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def residual() -> nn.Module:
    return Residual(
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )


def writing() -> nn.Module:
    """Forwards that write on their modules, and one that loops over a list of children."""
    return nn.Sequential(nn.Conv2d(3, 8, 1), hosts.Recorder(), hosts.Counter(), hosts.Loop())


def patched() -> nn.Module:
    return hosts.Network(hosts.patched)


def no_longer_faithful(host: nn.Module) -> None:
    """Set what a rewritten forward had read, such that its children are listened to from now on."""
    for block in host.modules():
        if isinstance(block, hosts.Attributes):
            block.last = lambda x: torch.relu(x) if x.sum() > 0 else x


def moved(host: nn.Module) -> None:
    """What attention took the place of comes back into a host of another dtype."""
    host.double().eval()


HOSTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Callable[[nn.Module], Any]]] = {
    "rewrite": (partial(hosts.Network, hosts.InPlace), {}, nn.Module.eval),
    "modes": (partial(hosts.Network, hosts.Modes), {}, nn.Module.train),
    "attach": (partial(hosts.Network, hosts.Flag), {}, nn.Module.eval),
    "before": (partial(hosts.Network, hosts.Flag), {"position": "pre"}, nn.Module.eval),
    "listening": (partial(hosts.Network, hosts.Attributes), {}, no_longer_faithful),
    "patched": (patched, {}, nn.Module.eval),
    "writing": (writing, {}, nn.Module.eval),
    "sequential": (partial(hosts.Network, residual), {}, nn.Module.eval),
    "graph": (hosts.graph_module_network, {}, nn.Module.eval),
    "swap": (partial(held.Net, held.OwnModule), {"existing": "replace"}, moved),
    "instead": (partial(held.Net, held.ChildGate), {"existing": "replace"}, moved),
    "graph with attention": (
        partial(held.traced, held.OwnModule),
        {"existing": "stack"},
        nn.Module.eval,
    ),
}


def made(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = HOSTS[name][0]()
        for norm in host.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight)
    return host.eval()


def operated(name: str, seed: int = 0) -> nn.Module:
    _, options, later = HOSTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = attn_surgery.apply(made(name, seed), "cbam", **options)
        if options.get("existing") != "replace":
            attn_surgery.apply(host, "se", existing="stack")
        for attention in attn_surgery.inserted(host).values():
            for each in attention.parameters():
                nn.init.normal_(each)
    later(host)
    return host


# What a host is


def everything(host: nn.Module) -> list[Any]:
    """Return, module by module, all that is to be seen of a host."""
    found: list[Any] = [list(host.state_dict()), list(attn_surgery.inserted(host).items())]
    pending: list[tuple[str, nn.Module]] = list(host.named_modules(remove_duplicate=False))
    for path, module in pending:
        former = replaced_by(module)
        if former is not None:
            for name, inside in former.modules.items():
                pending += inside.named_modules(prefix=f"{path} for {name}")
        own = vars(module)
        found.append((path, module, type(module), list(own.items())))
        found += [
            (path, name, list(value.items()) if isinstance(value, dict) else list(value))
            for name, value in own.items()
            if isinstance(value, (list, set, dict))
        ]
        found += [getattr(type(module), name) for name in ("forward", "__call__")]
    return found


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two are alike down to the identity of every object."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and a is not b:
        return len(a) == len(b) and all(map(is_same, a, b))
    return a is b or (isinstance(a, (str, int, float, torch.Size)) and a == b)


def tensors(host: nn.Module) -> dict[str, Tensor]:
    modules = [host]
    found = {}
    for i, module in enumerate(modules):
        for path, inside in module.named_modules():
            former = replaced_by(inside)
            modules += former.modules.values() if former else ()
            for name, each in (*inside._parameters.items(), *inside._buffers.items()):
                if each is not None:
                    found[f"{i} {path} {name}"] = each.detach().clone()
    return found


def are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


def output(host: nn.Module) -> Tensor:
    like = next(host.parameters())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(like.dtype)
    modes = {module: module.training for module in host.modules()}
    with torch.no_grad():
        result = host.eval()(x)
    for module, mode in modes.items():
        module.training = mode
    return result


def around() -> list[Any]:
    """Return what else a verb changes for a while."""
    factories = [getattr(torch, name) for name in FACTORIES]
    grad = torch.is_grad_enabled()
    insisting = [torch.autocast.__init__, torch.is_autocast_enabled, torch._check]
    return [*factories, *insisting, grad, str(torch.empty(0).device), str(random.getstate())]


# Tries


def prepared(verb: str, name: str, folder: Path) -> tuple[nn.Module, Callable[..., Any]]:
    """Return a host and what is to be done to it."""
    options = HOSTS[name][1]
    if verb == "remove":
        return operated(name), attn_surgery.remove
    if verb == "apply":
        return made(name), partial(attn_surgery.apply, attention="cbam", **options)
    if verb == "apply again":
        return operated(name), partial(attn_surgery.apply, attention="se", existing="stack")
    path = folder / f"{name}.safetensors"
    if not path.exists():
        attn_surgery.save(operated_for_file(name), path, host="all")
    act = partial(attn_surgery.load if verb == "load" else attn_surgery.switch, path=path)
    if verb == "switch":
        return operated_for_file(name, seed=1), act
    if verb == "switch anew":
        return attn_surgery.apply(made(name, seed=1), "se", **options), act
    return made(name, seed=1), act


def operated_for_file(name: str, seed: int = 0) -> nn.Module:
    return attn_surgery.apply(made(name, seed), "cbam", **HOSTS[name][1])


VERBS = ("apply", "apply again", "load", "switch", "switch anew", "remove")


@dataclass
class Tries:
    """Faults at drawn lines of one verb on one host."""

    verb: str
    name: str
    folder: Path
    raised: int = 0
    went_on: int = 0

    def __post_init__(self) -> None:
        self.drawn = random.Random(f"{self.verb} {self.name}")
        self._faultless()  # what is kept for the next time is, the second time
        self.lines, self.state = self._faultless()

    def _faultless(self) -> tuple[int, list[str]]:
        host, act = prepared(self.verb, self.name, self.folder)
        lines = Lines()
        raised = lines.run(partial(act, host))
        assert raised is None, raised
        return lines.passed, list(host.state_dict())

    def once(self) -> None:
        host, act = prepared(self.verb, self.name, self.folder)
        returned = output(host)
        was, numbers, other = everything(host), tensors(host), around()
        fault = Lines(self.drawn.randint(1, self.lines), self.drawn.choice(ERRORS))
        raised = fault.run(partial(act, host))
        said = f"{self.verb}, {self.name}: {fault.error.__name__} at {fault.at} of {self.lines}"
        if fault.passed < fault.at:  # sets of objects have another order each time
            assert fault.passed > 0.99 * self.lines, said
            self.once()
            return
        assert is_same(around(), other), said
        if raised is None:
            self._check_went_on(host, fault, returned, said)
            return
        assert is_same(everything(host), was), said
        assert are_equal(tensors(host), numbers), said
        assert torch.equal(output(host), returned), said
        self.raised += 1

    def _check_went_on(self, host: nn.Module, fault: Lines, returned: Tensor, said: str) -> None:
        """Check what came of a fault that was taken for a forward which cannot be followed."""
        assert fault.error is FaultError, said
        if self.verb in ("load", "switch", "switch anew"):
            assert list(host.state_dict()) == self.state, said
        else:
            assert torch.equal(output(host), self._expected(host, returned)), said
        self.went_on += 1

    def _expected(self, host: nn.Module, returned: Tensor) -> Tensor:
        """Return what a host gives on, whose own attention was replaced where it has another."""
        fresh, act = prepared(self.verb, self.name, self.folder)
        gone = fresh.state_dict().keys() - host.state_dict().keys()
        if not gone:
            return returned
        return output(act(fresh, where=lambda site: any(map(_within(site.block), gone))))


def _within(block: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(f"{block}.")


CASES = [
    (verb, name)
    for verb, name in product(VERBS, HOSTS)
    # the copy that `load` tries on is no longer of the class that the file names
    if not (verb in ("load", "switch anew") and name in ("graph", "graph with attention"))
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("verb", "name"), CASES)
def test_a_fault_at_any_line_leaves_the_host_as_it_was(verb, name, tmp_path):
    tries = Tries(verb, name, tmp_path)
    for _ in range(3):
        tries.once()


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "name"), CASES)
def test_a_fault_at_any_of_many_lines_leaves_the_host_as_it_was(verb, name, tmp_path, capsys):
    tries = Tries(verb, name, tmp_path)
    for _ in range(30):
        tries.once()
    with capsys.disabled():
        print(f"\n{verb}, {name}: {tries.raised} raised, {tries.went_on} went on", end=" ")


# Out of memory, or of stack


class Exhausting(hosts.Block):
    """Whose forward raises what says nothing of it."""

    error: type[BaseException] = MemoryError

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        raise self.error


class Filling(Exhausting):
    error = torch.OutOfMemoryError


class Endless(Exhausting):
    def forward(self, x: Tensor) -> Tensor:
        return self.forward(x + 1)


@pytest.mark.parametrize("verb", [attn_surgery.plan, attn_surgery.apply])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (Exhausting, MemoryError),
        (partial(hosts.Network, Exhausting), MemoryError),
        (Filling, torch.OutOfMemoryError),
        (partial(hosts.Network, Filling), torch.OutOfMemoryError),
        (Endless, RecursionError),
    ],
)
def test_what_ran_out_of_memory_or_stack_is_no_forward_that_cannot_be_followed(verb, make, error):
    host = make().eval()
    was = everything(host)
    with pytest.raises(error):
        verb(host)
    assert is_same(everything(host), was)


@pytest.mark.parametrize(
    "error", [MemoryError, torch.OutOfMemoryError, RecursionError, KeyboardInterrupt]
)
def test_an_attention_for_which_there_is_no_memory_is_no_wrong_attention(error):
    def build(channels: int) -> nn.Module:
        raise error

    host = hosts.Network(hosts.Block)
    was = everything(host)
    with pytest.raises(error):
        attn_surgery.apply(host, build)
    assert is_same(everything(host), was)


def test_an_attribute_that_cannot_be_set_for_want_of_memory_is_what_it_was(monkeypatch):
    host = hosts.Attributes()
    attn_surgery.apply(host, "se")
    was = everything(host)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(hosts.Attributes, "branch", fail)
    with pytest.raises(MemoryError):
        host.scale = 2.0
    assert is_same(everything(host), was)
