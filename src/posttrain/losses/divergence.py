"""Divergences between two next-token distributions, a teacher's p and a student's q. Un-reduced: one value per token, [N].

With logits z, temperature T and outcomes v:

    p = softmax(z_teacher / T),  q = softmax(z_student / T)

`log_distributions` gives log p and log q over the whole vocabulary, or over the teacher's k likeliest tokens and one more
outcome for all the rest; a divergence is a function of these. Gradients are meant for q; p is a constant.

Shapes: N tokens, V vocabulary, K outcomes (V, or k + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Divergence", "forward_kl", "jensen_shannon", "log_distributions", "reverse_kl"]

Divergence = Callable[[Tensor, Tensor], Tensor]  # (log p, log q), both [N, K] -> [N]


def forward_kl(teacher_NK: Tensor, student_NK: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v), from log p and log q: the student covers all that the teacher may say.

    Gradient by the student's logits: (q − p) / T. Source: Hinton et al. 2015 (1503.02531), section 2, up to p's entropy.
    """
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(-1)


def reverse_kl(teacher_NK: Tensor, student_NK: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ_v q_v (log q_v − log p_v), from log p and log q: the student keeps to what the teacher finds likely.

    Gradient by the student's logits: q (log q − log p − KL(q ‖ p)) / T. Source: Gu et al. 2023 (2306.08543).
    """
    return (student_NK.exp() * (student_NK - teacher_NK)).sum(-1)


def jensen_shannon(teacher_NK: Tensor, student_NK: Tensor, *, beta: float) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q: generalised Jensen-Shannon, 0 < β < 1.

    Divided by β it tends to KL(p ‖ q) for β → 0, divided by 1 − β to KL(q ‖ p) for β → 1; it never exceeds
    −β log β − (1 − β) log(1 − β). Source: Agarwal et al. 2023 (2306.13649), JSD(β) with P the teacher.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta}; the limits are forward_kl and reverse_kl")
    mixed_NK = torch.logaddexp(teacher_NK + math.log(beta), student_NK + math.log1p(-beta))
    return beta * forward_kl(teacher_NK, mixed_NK) + (1 - beta) * forward_kl(student_NK, mixed_NK)


def log_distributions(
    teacher_NV: Tensor, student_NV: Tensor, *, temperature: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Return (log p, log q) of logits: [N, V], or [N, k + 1] with 0 < `top_k` < V.

    Then the outcomes are the k tokens of the largest teacher logits, likeliest first, with the probabilities that they have
    among all V, and last the sum of the others' probabilities, the same tokens for teacher and student. Merging outcomes
    never makes a divergence larger, and nothing is renormalised: at k ≥ V − 1 it is the divergence over all V.
    Raises `ValueError` for logits of different shapes, a temperature that is not positive or a negative `top_k`.
    """
    if teacher_NV.shape != student_NV.shape:
        raise ValueError(f"teacher {tuple(teacher_NV.shape)} and student {tuple(student_NV.shape)} must have one shape")
    if not temperature > 0 or top_k < 0:
        raise ValueError(f"temperature = {temperature} must be positive, and top_k = {top_k} not negative")
    teacher_NV, student_NV = ((z / temperature).log_softmax(-1) for z in (teacher_NV, student_NV))
    if not 0 < top_k < teacher_NV.shape[-1]:
        return teacher_NV, student_NV
    top_NK = teacher_NV.topk(top_k, dim=-1).indices
    return _merged(teacher_NV, top_NK), _merged(student_NV, top_NK)


def _merged(logps_NV: Tensor, top_NK: Tensor) -> Tensor:
    """Return the log-probabilities of the chosen outcomes and, last, of all others together."""
    rest_N1 = logps_NV.scatter(-1, top_NK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logps_NV.gather(-1, top_NK), rest_N1], dim=-1)
