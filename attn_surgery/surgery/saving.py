"""The attention alone as a file: what was inserted, where, and into which host.

The file is safetensors. Its metadata hold the surgery as plans and the host's fingerprint; nothing
in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from attn_surgery.errors import SurgeryError
from attn_surgery.host import check_host, meta_copy, unwrapped, write_whole
from attn_surgery.planning import Plan, Site
from attn_surgery.rewriting import succession
from attn_surgery.surgery.fingerprint import check_same, digest, forms, text_digest
from attn_surgery.surgery.origin import origin_of, surgeries
from attn_surgery.surgery.transaction import all_or_nothing
from attn_surgery.surgery.verbs import inserted, remove, repeat

FORMAT = "attn_surgery 1"
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class _Content:
    """What a file says of itself."""

    surgeries: list[tuple[Plan, str]]
    host_forms: dict[str, str]
    """Every tensor of the host -> its dtype and shape."""
    host_digests: dict[str, str]
    """Every tensor of the host that is not in the file -> the hash of its numbers."""
    digests: dict[str, str]
    """Every tensor in the file -> the hash of its numbers."""

    def to_json(self) -> str:
        plans = [{"init": init, "plan": plan.to_dict()} for plan, init in self.surgeries]
        return json.dumps({**vars(self), "surgeries": plans})

    @classmethod
    def from_json(cls, text: str) -> _Content:
        data = json.loads(text)
        plans = [(Plan.from_dict(each["plan"]), each["init"]) for each in data.pop("surgeries")]
        return cls(plans, **data)


def save(model: nn.Module, path: str | Path, *, host: str | Sequence[str] | None = None) -> None:
    """Write what surgery added to ``model``, and nothing of the host unless asked.

    Args:
        model: A host that was operated on, which may be wrapped in DDP, DataParallel or
            ``torch.compile`` since.
        path: The file, ``.safetensors`` by custom.
        host: Which tensors of the host to write as well, because training changed them:
            ``"norms"`` (weights, biases and running statistics), ``"head"`` (the linear layers
            after the last convolution), ``"all"``, an fnmatch pattern over tensor names, or a list
            of these; None for none. A tensor that has several names is written by all of them.
            What attention took the place of is never written: after ``"all"`` it may be anything,
            otherwise it has to be there in the fresh host.

    Raises:
        SurgeryError: There is no attention, one cannot be described as data, the host is part of
            another model since, or ``host`` selects nothing.

    Example:
        >>> import tempfile, torchvision, attn_surgery
        >>> host = attn_surgery.apply(torchvision.models.resnet18(), "se", where="layer4.*")
        >>> path = Path(tempfile.mkdtemp(), "attention.safetensors")
        >>> attn_surgery.save(host, path)
        >>> fresh = attn_surgery.remove(host)  # or the same host, built and loaded again
        >>> list(attn_surgery.inserted(attn_surgery.load(fresh, path)))
        ['layer4.0.attn', 'layer4.1.attn']
    """
    if not inserted(model):
        raise SurgeryError("there is no attention to be saved: the model was not operated on")
    model = _host_in(model)
    attentions = inserted(model)
    own, _, hosts = _parted(model)
    kept = _selected(model, hosts, host)
    tensors = {**own, **kept}
    plans = surgeries(each for one in attentions.values() for each in succession(one))
    for plan, _ in plans:
        plan.check_is_data()
    fresh = remove(copy.deepcopy(model)).state_dict()  # with what attention took the place of
    others = {key: value for key, value in fresh.items() if key not in kept}
    if kept.keys() == hosts.keys():
        others = {}  # all that the model computes with is in the file
    content = _Content(
        surgeries=plans,
        host_forms=forms(fresh),
        host_digests={key: digest(value) for key, value in others.items()},
        digests={key: digest(value) for key, value in tensors.items()},
    )
    text = content.to_json()
    metadata = {"format": FORMAT, "content": text, "digest": text_digest(text)}
    compact = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    write_whole(Path(path), safetensors_bytes(compact, metadata))


def _host_in(model: nn.Module) -> nn.Module:
    """Return what was operated on, out of what was wrapped around it since.

    Raises:
        SurgeryError: Some attention does not know its surgery, or that was on another model.
    """
    host = unwrapped(model)
    fault = _misplaced(host)
    # unlike DDP it can be operated on; then its attention lies in blocks below "module"
    if isinstance(host, nn.DataParallel) and (fault or not _is_operated_as_whole(host)):
        return _host_in(host.module)
    if fault:
        raise SurgeryError(fault)
    return host


def _is_operated_as_whole(model: nn.DataParallel) -> bool:
    origins = map(origin_of, inserted(model).values())
    return all(origin and f"{origin.site.block}.".startswith("module.") for origin in origins)


def _misplaced(model: nn.Module) -> str:
    """Tell which attention cannot be inserted again where it is, if one cannot, and why."""
    places = _places(model)
    for path, attention in inserted(model).items():
        origin = origin_of(attention)
        if origin is None:
            return f"{path!r} does not know its origin: it cannot be inserted again"
        if not any(_is_of(each, origin.site) for each in places[attention]):
            return (
                f"{path!r} was inserted into {origin.site.block or '(the host)'!r}: the host is "
                "part of another model since; save the host itself"
            )
    return ""


def _is_of(path: str, site: Site) -> bool:
    """Tell whether a surgery at ``site`` can have put an attention at ``path``."""
    if site.method in ("rewrite", "wrap"):
        return path.rpartition(".")[0] == site.block
    return not site.block or path.startswith(f"{site.block}.")


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Repeat the surgery that a file describes on a fresh host, and fill it in, bit for bit.

    Args:
        model: The host, as it was before the surgery: same tensors, same numbers, but for those
            that the file brings.
        path: What `save` wrote.

    Returns:
        The model itself.

    Raises:
        SurgeryError: The file is not whole, or was made for another host, or the model is none that
            can be operated on; it is as it was.
    """
    check_host(model)
    content, tensors = _read(Path(path))
    if inserted(model):
        raise SurgeryError("the host holds attention already; call attn_surgery.remove first")
    state = model.state_dict()
    check_same(f"{path} was made for another host", forms(state), content.host_forms)
    rehearsal = _operated(meta_copy(model), content)
    own, again, _ = _parted(rehearsal)
    known = {**state, **again}
    expected = forms({**{key: known[key] for key in tensors if key in known}, **own})
    check_same(f"{path} does not hold what its surgery needs", forms(tensors), expected)
    digests = {key: digest(state[key]) for key in content.host_digests}
    _check_weights(path, digests, content.host_digests)
    overwritten = [state[key] for key in tensors if key in state]
    return all_or_nothing(model, lambda: _filled(model, content, tensors), overwritten)


def _filled(model: nn.Module, content: _Content, tensors: Mapping[str, Tensor]) -> nn.Module:
    left = _operated(model, content).load_state_dict(tensors, strict=False).unexpected_keys
    if left:
        raise SurgeryError(f"the host has no place for {left[0]!r}: its surgery was another one")
    return model


def _operated(model: nn.Module, content: _Content) -> nn.Module:
    for plan, init in content.surgeries:
        repeat(model, plan, init)
    return model


def _check_weights(path: str | Path, seen: Mapping[str, str], expected: Mapping[str, str]) -> None:
    if differing := [key for key in expected if seen[key] != expected[key]]:
        raise SurgeryError(
            f"{path} was made for a host with other weights: {len(differing)} tensors differ, "
            f"{differing[0]!r} the first; load the host's own weights before, or, if training "
            "changed them, write them too: save(..., host='all')"
        )


def _parted(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the state of the attentions, the same by other paths to them, and the rest."""
    first = tuple(f"{path}." for path in inserted(model))
    every = tuple(f"{path}." for paths in _places(model).values() for path in paths)
    state = model.state_dict()
    own = {key: value for key, value in state.items() if key.startswith(first)}
    again = {k: v for k, v in state.items() if k.startswith(every) and k not in own}
    return own, again, {k: v for k, v in state.items() if not k.startswith(every)}


def _places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return every path to each attention: as in a state dict, one for each way there is."""
    places: dict[nn.Module, list[str]] = {each: [] for each in inserted(model).values()}
    for path, module in model.named_modules(remove_duplicate=False):
        if module in places:
            places[module].append(path)
    return places


def _selected(
    model: nn.Module, hosts: Mapping[str, Tensor], asked: str | Sequence[str] | None
) -> dict[str, Tensor]:
    """Return the host's tensors that are to be written, by every name that they have."""
    words = [asked] if isinstance(asked, str) else list(asked or ())
    chosen: set[str] = set()
    for word in words:
        found = {key for key in hosts if _answers(key, word, model)}
        if not found:
            raise SurgeryError(
                f"host={word!r} selects no tensor; give 'norms', 'head', 'all' or a pattern over "
                f"names such as {next(iter(hosts), 'conv1.weight')!r}"
            )
        chosen |= found
    tied = {_memory(hosts[key]) for key in chosen}
    return {k: v for k, v in hosts.items() if k in chosen or _memory(v) in tied}


def _memory(tensor: Tensor) -> object:
    """Return what is the same for tensors that one change changes alike."""
    where = tensor.data_ptr() or id(tensor)  # those of no elements share an address
    return where, tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _answers(key: str, word: str, model: nn.Module) -> bool:
    path = key.rpartition(".")[0]
    if word == "all":
        return True
    if word == "norms":
        return isinstance(model.get_submodule(path), _NORMS)
    if word == "head":
        return path in _head(model)
    return fnmatchcase(key, word)


def _head(model: nn.Module) -> list[str]:
    """Return the paths of the linear layers after the last convolution."""
    modules = list(model.named_modules())
    convolutions = [i for i, (_, each) in enumerate(modules) if isinstance(each, _ConvNd)]
    after = modules[max(convolutions, default=-1) + 1 :]
    return [path for path, each in after if isinstance(each, nn.Linear)]


def _read(path: Path) -> tuple[_Content, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SurgeryError(f"cannot read {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise SurgeryError(f"{path} was not written by attn_surgery.save")
    text = metadata.get("content", "")
    if text_digest(text) != metadata.get("digest"):
        raise SurgeryError(f"{path} was altered: its description does not have the hash it had")
    content = _Content.from_json(text)
    digests = {key: digest(value) for key, value in tensors.items()}
    check_same(f"{path} was altered", digests, content.digests)
    return content, tensors
