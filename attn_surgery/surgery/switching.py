"""One host, many attention files: from one to another, without a surgery where that is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from attn_surgery.host import check_module
from attn_surgery.planning import Plan
from attn_surgery.surgery.attention_file import Content, read
from attn_surgery.surgery.fingerprint import check_same, forms
from attn_surgery.surgery.host_as_found import HostAsFound, host_as_found
from attn_surgery.surgery.hub import local_path
from attn_surgery.surgery.loading import check_needed, load
from attn_surgery.surgery.operated import Operated
from attn_surgery.surgery.transaction import all_or_nothing, numbers_or_nothing
from attn_surgery.surgery.verbs import remove

T = TypeVar("T", bound=nn.Module)


def switch(model: T, path: str | Path) -> T:
    """Let a file's attention take the place of what is inserted, as a fresh `load` would.

    What the file before brought of the host goes, too: what comes back is the host as it was found.
    Where both files hold the same attention at the same sites, numbers are copied and nothing else:
    modules, parameters, hooks, and what was compiled stay.

    Args:
        model: A host, which may be wrapped in DDP, DataParallel or ``torch.compile``; its attention
            was loaded, or inserted by ``apply``, or there is none yet.
        path: As for `load`.

    Returns:
        The model itself.

    Raises:
        SurgeryError: The file is not whole, or was made for another host, or the host was trained
            since; the model is as it was.

    Example:
        >>> import tempfile, torchvision, attn_surgery
        >>> folder = Path(tempfile.mkdtemp())
        >>> host = attn_surgery.apply(torchvision.models.resnet18(), "se", where="layer4.*")
        >>> for task in ("cats", "dogs"):
        ...     attention = attn_surgery.inserted(host)["layer4.0.attn"]
        ...     _ = next(attention.parameters()).data.fill_(len(task))
        ...     attn_surgery.save(host, folder / task)
        >>> attn_surgery.switch(host, folder / "cats") is host
        True
    """
    check_module(model)
    operated = Operated.within(model)
    file = local_path(path)  # once: what stands on a hub may change
    content, tensors = read(file)
    done = operated.surgeries
    if content.surgeries == done or _as_data(content.surgeries) == _as_data(done):
        return _copy(model, operated, path, content, tensors)
    return _operate_anew(model, operated, file, tensors)


def _as_data(surgeries: list[tuple[Plan, str]]) -> str:
    return Content(surgeries, {}, {}, {}).to_json()


def _copy(
    model: T, operated: Operated, path: str | Path, content: Content, tensors: Mapping[str, Tensor]
) -> T:
    """Copy a file's numbers to where those of another with the same surgery are."""
    host = operated.host
    found = host_as_found(operated.attentions.values()) or HostAsFound(
        forms(operated.before), dict(operated.replaced)
    )
    check_same(f"{path} was made for another host", found.forms, content.host_forms)
    check_needed(path, tensors, operated, host)
    found.check(path, content.host_digests, host)
    brought = {key: tensors[key] for key in tensors.keys() & host.keys()}
    new = {k: host[k].detach().clone() for k in brought if k not in found.aside}
    written = {**_given_back(found, host), **brought}

    def exchange() -> T:
        for attention_path, attention in operated.attentions.items():
            attention.load_state_dict(_below(attention_path, tensors))
        if written:
            operated.model.load_state_dict(written, strict=False)
        found.aside |= new
        found.keep(operated.attentions.values())
        return model

    return numbers_or_nothing([*operated.own.values(), *(host[key] for key in written)], exchange)


def _below(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{path}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _given_back(found: HostAsFound, host: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the numbers that the host had where files wrote on it."""
    return {key: tensor for key, tensor in found.aside.items() if key in host}


def _operate_anew(
    model: T, operated: Operated, path: str | Path, tensors: Mapping[str, Tensor]
) -> T:
    """Give the host back as it was found, and load the file."""
    host = operated.host
    found = host_as_found(operated.attentions.values())
    back = _given_back(found, host) if found else {}

    def exchange() -> T:
        operated.model.load_state_dict(back, strict=False)
        load(remove(operated.model), path)
        return model

    written = [host[key] for key in host if key in back or key in tensors]
    return all_or_nothing(operated.model, exchange, written)
