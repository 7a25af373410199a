"""An attention file into a fresh host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host import check_host
from attn_surgery.surgery.attention_file import Content, read
from attn_surgery.surgery.fingerprint import check_same, forms
from attn_surgery.surgery.host_as_found import HostAsFound
from attn_surgery.surgery.hub import local_path
from attn_surgery.surgery.operated import Operated
from attn_surgery.surgery.transaction import all_or_nothing
from attn_surgery.surgery.verbs import inserted, repeat


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Repeat the surgery that a file describes on a fresh host, and fill it in, bit for bit.

    `switch` goes on to another file.

    Args:
        model: The host, as it was before the surgery: same tensors, same numbers, but for those
            that the file brings.
        path: What `save` wrote; or ``"hf-hub:NAME"``, with ``@REVISION`` if need be, for what
            `push_to_hub` put on the Hugging Face hub.

    Returns:
        The model itself.

    Raises:
        SurgeryError: The file cannot be fetched or is not whole, or was made for another host, or
            the model is none that can be operated on; it is as it was.
    """
    check_host(model)
    content, tensors = read(local_path(path))
    if inserted(model):
        raise SurgeryError("the host holds attention already; call attn_surgery.remove first")
    state = model.state_dict(keep_vars=True)
    check_same(f"{path} was made for another host", forms(state), content.host_forms)
    found = HostAsFound(content.host_forms, {})
    found.check(path, content.host_digests, state)
    overwritten = [state[key] for key in tensors if key in state]
    return all_or_nothing(model, lambda: _filled(model, path, content, tensors, found), overwritten)


def check_needed(
    path: str | Path, tensors: Mapping[str, Tensor], operated: Operated, host: Mapping[str, Tensor]
) -> None:
    """Refuse a file without all tensors of the attention, or with tensors that have no place.

    Args:
        path: The file.
        tensors: What is in it.
        operated: A host after the same surgery.
        host: The tensors of the host, which may be in the file.

    Raises:
        SurgeryError: It is such a file.
    """
    known = {**host, **operated.again}
    needed = {**{key: known[key] for key in tensors if key in known}, **operated.own}
    alone = {key for key, tensor in needed.items() if tensor.shape == (1,)}
    # a number that stands alone may have the shape (), as IdentityStart's once had
    seen = {k: t[None] if k in alone and not t.dim() else t for k, t in tensors.items()}
    check_same(f"{path} does not hold what its surgery needs", forms(seen), forms(needed))


def _filled(
    model: nn.Module,
    path: str | Path,
    content: Content,
    tensors: Mapping[str, Tensor],
    found: HostAsFound,
) -> nn.Module:
    before = model.state_dict(keep_vars=True)
    for plan, init in content.surgeries:
        repeat(model, plan, init)
    operated = Operated(model)
    check_needed(path, tensors, operated, before)
    host = operated.host
    overwritten = {key: host[key].detach().clone() for key in tensors if key in host}
    left = model.load_state_dict(tensors, strict=False).unexpected_keys
    if left:
        raise SurgeryError(f"the host has no place for {left[0]!r}: its surgery was another one")
    found.aside = {**operated.replaced, **overwritten}
    found.keep(operated.attentions.values())
    return model
