"""Whose a parameter is: the attention's, a norm's, or the rest of the host's."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from attn_surgery.surgery import inserted

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_STATISTICS = ("running_mean", "running_var")


def attention_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters of what was inserted."""
    return {id(each) for one in inserted(model).values() for each in one.parameters()}


def norm_parameters(model: nn.Module) -> list[str]:
    """Return the names of weights and biases of the host's norms; the attention's are not meant.

    Example:
        >>> import torchvision
        >>> norm_parameters(torchvision.models.resnet18())[:3]
        ['bn1.weight', 'bn1.bias', 'layer1.0.bn1.weight']
    """
    attention = attention_parameters(model)
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if is_norm(module)
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in attention
        # other people's norms may be a convolution as well
        and (isinstance(module, _NORMS) or is_scale(module, name, parameter))
    ]


def is_norm(module: nn.Module) -> bool:
    """Tell whether this is a norm: one of torch's, or what has running statistics."""
    return isinstance(module, _NORMS) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Tell whether a module has running statistics."""
    return any(module._buffers.get(name) is not None for name in _STATISTICS)


def is_scale(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Tell whether this is a bias or a vector, whatever its shape, and no layer's weight."""
    if name == "weight" and isinstance(module, (_ConvNd, nn.Linear)):
        return False
    return name == "bias" or parameter.numel() == max(parameter.shape, default=1)
