"""Randomness that is a function of where training is, so that nothing need be remembered.

Every sample and every step gets a seed of its own, derived from the recipe's. Hence it makes no
difference who reads an image, when training was interrupted, or what ran before.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derived(*parts: object) -> int:
    """Return a seed of 63 bits, the same for the same parts.

    Example:
        >>> derived(0, "epoch", 1) == derived(0, "epoch", 1), derived(0) == derived(1)
        (True, False)
    """
    told = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1


def seed_all(seed: int) -> None:
    """Seed torch on all devices, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed what transforms of images draw from; no accelerator is touched."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
