"""Methods of a module that others may call instead of its forward."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

from torch import nn

from attn_surgery.host.additions import functions_called
from attn_surgery.host.bytecode import Path, gives_a_value, paths_off
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


def run_by_other_methods(module: nn.Module) -> frozenset[str]:
    """Return the children that a module's public methods run which its forward does not call.

    Such as ``forward_with_tap``: nothing that is done in the forward is done there, but what a
    child does is. A method that only looks at what a child is, at its width perhaps, does not run
    it.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return self.act(self.norm(self.conv(x)))
        ...
        ...     def before_act(self, x):
        ...         return self.norm(self.conv(x))
        >>> block = Block()
        >>> block.conv, block.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        >>> sorted(run_by_other_methods(block))
        ['conv', 'norm']
    """
    called = set(functions_called(module))
    others = [each for each in _public_methods(type(module)) if each not in called]
    reached = (each for other in others for each in functions_called(module, other))
    own = ((each.__code__, each.__code__.co_varnames) for each in reached)
    paths = (path for code, names in own if names for path in paths_off(code, names[0]))
    return frozenset(path[0] for path in paths if _is_run(module, path))


def _is_run(module: nn.Module, path: Path) -> bool:
    """Tell whether a child, or a method of one, stands at the end of a path."""
    for place, name in enumerate(path):
        if name not in module._modules:
            return place > 0 and callable(getattr(type(module), name, None))
        module = module._modules[name] or nn.Identity()
    return bool(path)


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
