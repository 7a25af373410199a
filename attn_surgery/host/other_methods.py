"""Methods that a module's own forward runs, and that others may call without it."""

from __future__ import annotations

from torch import nn

from attn_surgery.host.additions import functions_called
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


def _is_of(cls: type[nn.Module], function: object) -> bool:
    name = getattr(function, "__name__", "")
    return any(vars(each).get(name) is function for each in cls.__mro__)
