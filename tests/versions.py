"""What older versions of torch and timm cannot do, by name: the tests skip it, with the reason."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.gather_excite import GatherExcite

import attn_surgery


def numbers(version: str) -> tuple[int, ...]:
    """Read ``2.14.1+cu130`` as (2, 14, 1)."""
    return tuple(int(each) for each in version.partition("+")[0].split(".")[:3] if each.isdigit())


TORCH, TIMM = numbers(torch.__version__), numbers(timm.__version__)

PICKLES_ANNOTATIONS = TORCH >= (2, 14)
"""Before, no GraphModule whose graph has a string as an annotation could be pickled, by anybody."""

RESNEST_DROPS_PATHS = TIMM > (1, 0, 20)
"""In timm 1.0.20 a ResNeSt asserts that it is built without drop paths."""

YOUNGER_MODELS = set(
    "cpubone_nano cpubone_t0 cpubone_s0 cpubone_b0_bfrobust csatv2 csatv2_21m cspnext_tiny "
    "cspnext_s cspnext_m cspnext_l iformer_t iformer_s iformer_m iformer_l lcnetv2_small "
    "lcnetv2_base lcnetv2_large lowformer_b0 lowformer_b1 test_coatnet test_maxvit".split()
)
"""Not in timm 1.0.20; all but the CSATv2 not in 1.0.26 either."""

YOUNGER_ATTENTIONS = {"coord", "ela", "scoord", "strip"}
"""Not in timm 1.0.20."""


def skip_younger_model(arch: str) -> None:
    """Skip the test where timm does not have the model yet."""
    if arch in YOUNGER_MODELS and not timm.is_model(arch):
        pytest.skip(f"timm {timm.__version__} does not have {arch} yet")


def skip_younger_attention(attention: object) -> None:
    """Skip the test where timm does not have the attention yet."""
    if attention in sorted(YOUNGER_ATTENTIONS) and attention not in attn_surgery.available():
        pytest.skip(f"timm {timm.__version__} does not have {attention} yet")


def _is_broken() -> bool:
    try:
        GatherExcite(16)
    except TypeError:
        return True
    return False


BROKEN = {"ge"} if _is_broken() else set()
"""timm's ``ge`` works in 1.0.20, and not from 1.0.26 to 1.0.31: a dict unpacked as positions."""
