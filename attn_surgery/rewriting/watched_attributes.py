"""What happens when an attribute is set that a generated forward goes by: it is made anew."""

from __future__ import annotations

from typing import Any

from torch import nn

from attn_surgery.host import Attributes
from attn_surgery.rewriting.alteration import Renew, alteration_in, host_view

_SETTERS = (
    "__setattr__",
    "__delattr__",
    "add_module",
    "register_module",
    "register_parameter",
    "register_buffer",
)


def watching_setters(renew: Renew) -> dict[str, Any]:
    """Return the setters of a one-off class, which notice what its forward goes by."""
    return {name: _renewing(name, renew) for name in _SETTERS}


def _renewing(setter: str, renew: Renew) -> Any:
    """Make the setter of the host trace the forward anew where that had read the attribute."""

    def set_and_renew(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
        done, is_read = alteration_in(self), name in alteration_in(self).watched
        is_listed = done.watches_children and name != "__dict__"
        before = Attributes(self) if is_read or is_listed else None
        children = list(self._modules.items()) if is_listed else []
        getattr(host_view(self), setter)(name, *args, **kwargs)
        if before is None or not (is_read or children != list(self._modules.items())):
            return
        try:
            renew(self, done)
        except BaseException:
            before.restore()
            raise

    set_and_renew.__name__ = setter
    return set_and_renew
