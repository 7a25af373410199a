"""What a gradient promises: how steeply the loss falls when this attention alone begins to learn.

That is the length of the gradient, and of its mean over batches: what differs from batch to batch
cancels out. What is left of that by chance, the variance of the mean, is taken off.
"""

from __future__ import annotations

from attn_surgery.suggesting.gradients import Gradient


def score_of(gradient: Gradient) -> float:
    """Return the promise of one attention, 0 where it is no more than noise.

    Example:
        >>> import torch
        >>> steady, noisy = Gradient(), Gradient()
        >>> for sign in (1.0, -1.0, 1.0, -1.0):
        ...     steady.add(torch.tensor([3.0 + 0.1 * sign, 4.0]))
        ...     noisy.add(torch.tensor([sign, 0.0]))
        >>> round(score_of(steady), 2), score_of(noisy)
        (5.0, 0.0)
    """
    return max(0.0, (gradient.mean.square() - gradient.noise).sum().item()) ** 0.5
