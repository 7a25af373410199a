"""Uses that make int8 of a model: what that loses is held against what the host alone loses."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch

from compatibility.trial import Trial, relative_error

FACTOR, AT_LEAST = 2.0, 0.1
"""An operated model may lose so many times what its host does, or so much of its length."""


def by_export(trial: Trial) -> None:
    """torchao's PT2E with the quantizer for x86."""
    pt2e: Any = import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86: Any = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")

    exported = torch.export.export(trial.model, (trial.x,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = pt2e.prepare_pt2e(exported, quantizer)
    prepared(trial.x)
    _held(trial, pt2e.convert_pt2e(prepared))


def by_fx(trial: Trial) -> None:
    """torch's FX graph mode."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(trial.model, get_default_qconfig_mapping("x86"), (trial.x,))
        prepared(trial.x)
        _held(trial, convert_fx(prepared))


def _held(trial: Trial, quantized: Any) -> None:
    trial.error = relative_error(quantized(trial.x), trial.expected)
    if trial.host_error is not None and trial.error > max(FACTOR * trial.host_error, AT_LEAST):
        raise ValueError(f"it loses {trial.error:.2f}, the host alone {trial.host_error:.2f}")


QUANTIZING = {"PT2E int8": by_export, "fx int8": by_fx}
