"""What a gradient promises: how far the loss begins to fall when this attention alone is trained.

An optimizer that scales each parameter's step by its gradients, as Adam does (Kingma and Ba 2015,
arXiv:1412.6980, section 2.1), moves it by ``rate * m / sqrt(v)``, where m is the gradient's mean
over batches and v the mean of its square. To first order the loss falls by ``m * m / sqrt(v)`` for
each, in units of the rate. What chance alone would give is taken off: the variance of m, from its
square. An attention that draws its first weights is tried with several draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from attn_surgery.suggesting.gradients import Gradient


def score_of(gradients: Sequence[Gradient]) -> float:
    """Return the promise of one attention, 0 where it is no more than noise.

    Args:
        gradients: One for each draw of its first weights.

    Example:
        >>> import torch
        >>> steady, noisy = Gradient(), Gradient()
        >>> for sign in (1.0, -1.0, 1.0, -1.0):
        ...     steady.add(torch.tensor([3.0 + 0.1 * sign]))
        ...     noisy.add(torch.tensor([sign]))
        >>> round(score_of([steady]), 1), score_of([noisy])
        (3.0, 0.0)
    """
    return max(0.0, fmean(map(_fall, gradients)))


def _fall(gradient: Gradient) -> float:
    size = gradient.mean_square.sqrt()
    seen = size > 0
    return ((gradient.mean.square() - gradient.noise)[seen] / size[seen]).sum().item()
