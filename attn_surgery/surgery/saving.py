"""The attention alone into a file: what was inserted, where, and into which host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from attn_surgery.errors import SurgeryError
from attn_surgery.surgery.attention_file import Content, write
from attn_surgery.surgery.fingerprint import digest, forms
from attn_surgery.surgery.operated import Operated
from attn_surgery.surgery.verbs import inserted

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


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
    operated = Operated.within(model)
    model = operated.model
    kept = _selected(model, operated.host, host)
    tensors = {**operated.own, **kept}
    plans = operated.surgeries
    for plan, _ in plans:
        plan.check_is_data()
    before = operated.before  # with what attention took the place of
    others = {key: value for key, value in before.items() if key not in kept}
    if kept.keys() == operated.host.keys():
        others = {}  # all that the model computes with is in the file
    content = Content(
        surgeries=plans,
        host_forms=forms(before),
        host_digests={key: digest(value) for key, value in others.items()},
        digests={key: digest(value) for key, value in tensors.items()},
    )
    write(Path(path), content, tensors)


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
