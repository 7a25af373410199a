"""Still a PyTorch model: whatever could be done with the host can be done with it operated.

First, a host's ``forward`` means what it meant, for every Python value that it looks at.
Afterwards, copying, saving, compiling, exporting, scripting, hooks and dtypes.
"""

from __future__ import annotations

import copy
import itertools
import random
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import hosts
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import attn_surgery

Call = Callable[[Any, Tensor], Any]
Change = Callable[[Any], None]


@dataclass(frozen=True)
class Case:
    """A host, ways to call it, and what is done to it after the surgery."""

    make: Callable[[], nn.Module]
    calls: tuple[Call, ...] = (lambda host, x: host(x),)
    changes: tuple[Change, ...] = ()


def attribute(name: str, value: Any) -> Change:
    """Return a change that sets ``host.name``; modules and tensors are copied, one per host."""
    return lambda host: setattr(host, name, copy.deepcopy(value))


def call(*args: Any, **kwargs: Any) -> Call:
    return lambda host, x: host(x, *args, **kwargs)


def positional_or_not(host: Any, x: Tensor) -> Any:
    return host(x=x)


def in_list(host: Any, x: Tensor) -> Any:
    return host([x, x + 1])


def with_gradient(host: Any, x: Tensor) -> Any:
    return host(x.clone().requires_grad_())


def without_grad_mode(host: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return host(x)


def in_inference_mode(host: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return host(x)


def by_forward(host: Any, x: Tensor) -> Any:
    return host.forward(x)


def freeze_norm(host: Any) -> None:
    host.train()
    host.bn2.eval()


def double_branch(host: Any) -> None:
    branch = type(host).branch
    host.branch = types.MethodType(lambda self, x: 2 * branch(self, x), host)


def add_downsample(host: Any) -> None:
    host.add_module("downsample", nn.AvgPool2d(3, 1, 1))


def add_gamma(host: Any) -> None:
    host.register_parameter("gamma", nn.Parameter(torch.full((1,), 0.3)))


def set_by_vars(host: Any) -> None:
    vars(host)["scale"] = 0.7


def append_layer(host: Any) -> None:
    host.layers.append(nn.Conv2d(hosts.WIDTH, hosts.WIDTH, 1))
    with torch.no_grad():
        host.layers[-1].weight.fill_(0.1)


def drop_layer(host: Any) -> None:
    del host.layers[1]


def set_item(host: Any) -> None:
    host.config["scale"] = 2.0


def set_nested(host: Any) -> None:
    host.config.scale = 2.0


def set_drop(host: Any) -> None:
    host.drop.p = 0.5


NORM = nn.InstanceNorm2d(hosts.WIDTH)

CASES = {
    "in_place": Case(hosts.Block, calls=(call(), by_forward, positional_or_not, in_inference_mode)),
    "functional": Case(hosts.Functional),
    "functional_end": Case(hosts.FunctionalEnd),
    "method_add": Case(hosts.MethodAdd),
    "float_functional": Case(hosts.Quantizable),
    "twice": Case(hosts.Twice),
    "loop": Case(hosts.Loop, changes=(append_layer, drop_layer)),
    "super": Case(hosts.Super),
    "checkpointed": Case(hosts.Checkpointed),
    "returns_tuple": Case(hosts.ReturnsTuple),
    "modes": Case(hosts.Modes),
    "mode_of_child": Case(hosts.ModeOfChild, changes=(freeze_norm,)),
    "stochastic_depth": Case(hosts.StochasticDepth),
    "python_stochastic_depth": Case(hosts.PythonStochasticDepth),
    "noise": Case(hosts.Noise),
    "flag": Case(hosts.Flag, calls=(call(), call(False), call(True), call(flag=True), call(1))),
    "keyword_only": Case(
        hosts.KeywordOnly, calls=(call(), call(scale=2.0), call(scale=2.0, act=False))
    ),
    "variadic": Case(hosts.Variadic, calls=(call(), call(2.0, 3.0), call(add=False))),
    "optional_tensor": Case(
        hosts.OptionalTensor,
        calls=(call(), call(None), lambda host, x: host(x, x * 2), lambda host, x: host(x, more=x)),
    ),
    "number": Case(hosts.Number, calls=(call(), call(2.0), call(scale=0))),
    "word": Case(hosts.Word, calls=(call(), call("tanh"), call(mode="both"), call("no"))),
    "word_in_set": Case(hosts.WordInSet, calls=(call(), call("tanh"))),
    "word_in_dict": Case(hosts.WordInDict, calls=(call(), call("tanh"), call("other"))),
    "word_as_text": Case(hosts.WordAsText, calls=(call(), call("tanh"))),
    "callable_default": Case(hosts.CallableDefault, calls=(call(), call(torch.tanh))),
    "depth": Case(hosts.Depth, calls=(call(), call(0), call(times=3))),
    "shape": Case(hosts.Shape, calls=(call(), lambda host, x: host(torch.cat([x, x], 3)))),
    "needs_gradient": Case(hosts.NeedsGradient, calls=(call(), with_gradient)),
    "recovering": Case(hosts.Recovering, calls=(call(), lambda host, x: host(x[..., :6]))),
    "grad_mode": Case(hosts.GradMode, calls=(call(), without_grad_mode)),
    "no_grad": Case(hosts.NoGrad, calls=(with_gradient,)),
    "counter": Case(hosts.Counter),
    "counting_buffer": Case(hosts.CountingBuffer),
    "recorder": Case(hosts.Recorder),
    "reads_global": Case(hosts.ReadsGlobal),
    "reads_dict": Case(hosts.ReadsDict, changes=(set_item, attribute("config", {"scale": 3.0}))),
    "reads_namespace": Case(hosts.ReadsNamespace, changes=(set_nested,)),
    "reads_child": Case(hosts.ReadsChild, changes=(set_drop,)),
    "attributes": Case(
        hosts.Attributes,
        changes=(
            attribute("use_res", False),
            attribute("scale", 2.0),
            attribute("scale", torch.tensor(0.5)),
            attribute("downsample", nn.AvgPool2d(3, 1, 1)),
            attribute("gamma", nn.Parameter(torch.full((1,), 0.3))),
            attribute("last", torch.tanh),
            attribute("last", nn.Tanh()),
            attribute("first", nn.Identity()),
            attribute("act", nn.SiLU()),
            attribute("bn2", NORM),
            attribute("conv2", nn.Sequential(nn.Conv2d(hosts.WIDTH, hosts.WIDTH, 1, bias=False))),
            double_branch,
            add_downsample,
            add_gamma,
            set_by_vars,
        ),
    ),
    "skippable": Case(hosts.Skippable, changes=(attribute("skip", True),)),
    "patched": Case(hosts.patched),
    "patched_with_flag": Case(hosts.patched_with_flag, calls=(call(), call(True))),
    "graph_module": Case(hosts.graph_module),
    "basic_block": Case(hosts.basic_block, changes=(attribute("downsample", nn.AvgPool2d(3, 1, 1)),)),
    "quantizable_block": Case(hosts.quantizable_block),
    "inverted_residual": Case(
        hosts.inverted_residual, changes=(attribute("use_res_connect", False),)
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(case: Case) -> Any:
    torch.manual_seed(0)
    return case.make()


def settle(host: nn.Module) -> None:
    """Give the norms statistics and gains that are not their start."""
    values = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in host.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=values) + 0.5)


def twins(case: Case) -> tuple[Any, Any]:
    """Return the host and the host to be operated on."""
    host, operated = made(case), made(case)
    for each in (host, operated):
        settle(each)
    return host, operated


@dataclass
class Seen:
    """All that one call lets see."""

    structure: object
    tensors: list[Tensor]
    random_state: Tensor
    python_random_state: object
    attributes: dict[str, object]


def see(host: nn.Module, run: Call, seed: int = 3) -> Seen:
    torch.manual_seed(seed)
    random.seed(seed)
    x = torch.randn(2, hosts.WIDTH, 8, 8)
    leaves, structure = tree_flatten(run(host, x))
    return Seen(
        structure=structure,
        tensors=[each.detach() for each in leaves],
        random_state=torch.get_rng_state(),
        python_random_state=random.getstate(),
        attributes={name: own(value) for name, value in vars(host).items() if name[0] != "_"},
    )


def own(value: object) -> object:
    """Return what two equal hosts share of an attribute's value."""
    if isinstance(value, list):
        return [each.tolist() if isinstance(each, Tensor) else each for each in value]
    return value if isinstance(value, (bool, int, float, str)) else type(value)


def assert_same(host: Seen, operated: Seen) -> None:
    assert operated.structure == host.structure
    assert len(operated.tensors) == len(host.tensors)
    assert all(map(torch.equal, operated.tensors, host.tensors))
    assert torch.equal(operated.random_state, host.random_state)
    assert operated.python_random_state == host.python_random_state
    assert {**operated.attributes, "forward": 0} == {**host.attributes, "forward": 0}


def differ(host: Seen, operated: Seen) -> bool:
    return any(not torch.allclose(a, b) for a, b in zip(host.tensors, operated.tensors))


def nothing(host: Any) -> None:
    pass


def scenarios() -> Iterator[Any]:
    for name, case in CASES.items():
        for i, change in enumerate((nothing, *case.changes)):
            yield pytest.param(case, change, id=f"{name}-{i}" if i else name)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("case", "change"), [*scenarios()])
def test_python_values_mean_what_they_meant(case: Case, change: Change, training: bool) -> None:
    host, operated = twins(case)
    attn_surgery.apply(operated, "cbam")
    for each in (host, operated):
        each.train(training)
        change(each)
    for run in case.calls:
        assert_same(see(host, run), see(operated, run))
    attn_surgery.remove(operated)
    for run in case.calls:
        assert_same(see(host, run), see(operated, run))


def move(attentions: dict[str, nn.Module]) -> None:
    """Take attentions away from their identity start."""
    values = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for attention in attentions.values():
            for parameter in attention.parameters():
                parameter += torch.randn(parameter.shape, generator=values) * 0.5


def hooked(host: nn.Module, plan: attn_surgery.Plan, attentions: list[nn.Module]) -> bool:
    """Do by forward hooks what the surgery does, where a child makes what the attention gets."""
    children = dict(host.named_modules())
    if not all(site.after in children for site in plan.sites):
        return False
    for site, attention in zip(plan.sites, attentions, strict=True):
        children[site.after].register_forward_hook(
            lambda module, args, out, attention=attention: attention(out)
        )
    return True


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("case", "change"), [*scenarios()])
def test_the_attention_acts_for_every_python_value(
    case: Case, change: Change, training: bool
) -> None:
    host, operated = twins(case)
    reference = copy.deepcopy(host)
    plan = attn_surgery.plan(operated, "cbam")
    attn_surgery.apply(operated, "cbam")
    move(attn_surgery.inserted(operated))
    attentions = [copy.deepcopy(each) for each in attn_surgery.inserted(operated).values()]
    for each in (host, reference, operated, *attentions):
        each.train(training)
    for each in (host, reference, operated):
        change(each)
    has_reference = hooked(reference, plan, attentions)
    acted = False
    for run, seed in itertools.product(case.calls, (3, 4, 5)):
        seen = see(operated, run, seed)
        acted |= differ(see(host, run, seed), seen)
        if has_reference:
            assert_same(see(reference, run, seed), seen)
    assert acted or case.make is hosts.Skippable
