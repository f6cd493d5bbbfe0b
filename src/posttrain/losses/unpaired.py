"""KTO: learning from single responses, each desirable or not. Un-reduced: one value per response, shape [N]."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kto"]


def kto(
    log_ratio_N: Tensor, desirable_N: Tensor, baseline: float | Tensor, *, beta: float,
    desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """λ_y − v(x, y), per response (Ethayarajh et al. 2024, 2402.01306, eq. 8), with h = log π(y|x) − log π_ref(y|x):

        v = λ_D σ(β (h − z₀))  when y is desirable,    v = λ_U σ(β (z₀ − h))  when it is not

    z₀ is the baseline: an estimate of KL(π ‖ π_ref), no gradient through it, not below 0. Gradient by h:
    ∓ λ β σ(m) σ(−m) with m = β (h − z₀): largest where a response is worth the baseline, none far from it.
    """
    baseline = torch.as_tensor(baseline).detach().to(log_ratio_N).clamp(min=0)
    of = log_ratio_N.new_tensor
    sign_N = torch.where(desirable_N, of(1.0), of(-1.0))
    weight_N = torch.where(desirable_N, of(desirable_weight), of(undesirable_weight))
    return weight_N * torch.sigmoid(-beta * sign_N * (log_ratio_N - baseline))
