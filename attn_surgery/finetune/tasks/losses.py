"""Losses of fine-tuning that PyTorch does not have: the untouched host as a teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_surgery.errors import SurgeryError


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Tell how far a student's predictions are from its teacher's (Hinton et al. 2015).

    ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, summed over the classes and averaged
    over the images (arXiv:1503.02531, section 2). The factor T^2 keeps the size of the gradient
    about the same at every temperature, so that the weight against the loss on labels need not
    change with it. No labels are needed: unlabelled images serve as well.

    What differs from the paper: the divergence and not the cross entropy, which has the same
    gradient and is 0 where the two agree. No gradient goes to the teacher. Logits in half
    precision are compared in single precision.

    Args:
        student_logits: ``(N, classes)``.
        teacher_logits: ``(N, classes)``.
        temperature: T, positive; higher ones show more of what the teacher takes for similar.

    Returns:
        A scalar.

    Raises:
        SurgeryError: The shapes differ or are others, or the temperature is not positive.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -1.0]])
        >>> distillation_loss(teacher, teacher, temperature=4.0).item()
        0.0
        >>> round(distillation_loss(torch.zeros(1, 3), teacher, temperature=4.0).item(), 3)
        0.808
    """
    _check_shapes(student_logits, teacher_logits)
    if not 0 < temperature < math.inf:
        raise SurgeryError(f"temperature={temperature!r} is not a positive number")
    student, teacher = (
        F.log_softmax(logits.to(_at_least_single(logits)) / temperature, dim=1)
        for logits in (student_logits, teacher_logits.detach())
    )
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _at_least_single(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise SurgeryError(
            "distillation compares logits (N, classes) of one shape, not "
            f"{tuple(student.shape)} of the student with {tuple(teacher.shape)} of the teacher; "
            "fit the teacher's head to the student's classes, and flatten maps to "
            "(N * pixels, classes)"
        )
