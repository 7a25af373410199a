"""Methods of a module that others may call instead of its forward."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

from torch import nn

from attn_surgery.host.additions import functions_called
from attn_surgery.host.bytecode import gives_a_value, read
from attn_surgery.host.callables import is_at_home
from attn_surgery.host.called_method import entry_name


def public_methods_run(module: nn.Module) -> list[str]:
    """Return the names of a module's public methods that its forward calls, at once or in turn.

    Such as ``forward_features``: what the forward does there is done, too, when somebody calls
    the method.

    Example:
        >>> class Net(nn.Module):
        ...     def forward_features(self, x):
        ...         return x + x
        ...
        ...     def forward(self, x):
        ...         return self.forward_features(x).mean((2, 3))
        >>> public_methods_run(Net())
        ['forward_features']
    """
    cls = type(module)
    names = (function.__name__ for function in functions_called(module) if _is_of(cls, function))
    return [name for name in names if not name.startswith("_") and name != entry_name(cls)]


def read_by_other_methods(module: nn.Module) -> frozenset[str]:
    """Return what a module's public methods read of it that take and give something as it does.

    Such as ``forward_with_tap``: nothing that is done in the forward is done there, but what a
    child does is. Those that the forward calls do not count.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return self.act(self.norm(self.conv(x)))
        ...
        ...     def before_act(self, x):
        ...         return self.norm(self.conv(x))
        >>> sorted(read_by_other_methods(Block()))
        ['conv', 'norm']
    """
    called = set(functions_called(module))
    others = [each for each in _public_methods(type(module)) if each not in called]
    reached = (each for other in others for each in functions_called(module, other))
    return frozenset().union(*(read(each.__code__).attributes for each in reached))


def _public_methods(cls: type[nn.Module]) -> Iterator[types.FunctionType]:
    """Yield the public methods of a class, torch's apart, that take something and return it."""
    classes = [each for each in cls.__mro__ if not is_at_home(each)]
    for name in dict.fromkeys(name for each in classes for name in vars(each)):
        method = inspect.getattr_static(cls, name)
        if not isinstance(method, types.FunctionType) or name.startswith("_"):
            continue
        if not hasattr(nn.Module, name) and _takes(method) and gives_a_value(method.__code__):
            yield method


def _takes(method: types.FunctionType) -> bool:
    """Tell whether a method has to be given something."""
    code = method.__code__
    return code.co_argcount - len(method.__defaults__ or ()) > 1


def _is_of(cls: type[nn.Module], function: object) -> bool:
    name = getattr(function, "__name__", "")
    return any(vars(each).get(name) is function for each in cls.__mro__)
