"""Estimators of KL(π ‖ π_ref) from the log-probabilities of tokens that π drew. Un-reduced: one value per token, [N].

With d = log π(a) − log π_ref(a) of a token a ~ π:

    k1 = d        k2 = d² / 2        k3 = exp(−d) − 1 + d                      (Schulman 2020, "Approximating KL divergence")

k1 and k3 have the KL as their mean; k2 only nearly. Their *gradients* are another matter: differentiated as they stand,
k1's mean is 0 and k3's is the gradient of KL(π_ref ‖ π). `kl_loss` has the exact gradient of KL(π ‖ π_ref) as its mean,
also for tokens drawn from an older policy. Nothing is clamped: a clamp takes the gradient away where it is needed most.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Estimator", "kl_estimate", "kl_loss"]

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps_N: Tensor, reference_N: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """Return the estimator's value for each token. With k1 and k3, E[value] = KL(π ‖ π_ref) under a ~ π."""
    d_N = logps_N - reference_N
    if estimator == "k1":
        return d_N
    return d_N.square() / 2 if estimator == "k2" else torch.exp(-d_N) - 1 + d_N


def kl_loss(logps_N: Tensor, reference_N: Tensor, old_N: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """Return what to minimise for each token: E under a ~ π_old has the gradient of KL(π ‖ π_ref), at any π.

    With ρ = π / π_old (1 in value where π_old is π, but not in gradient):

        k1: ρ k1        k2: sg(ρ) k2        k3: ρ k3

    E[ρ k1] = E[ρ k3] = KL, so the gradients agree too; ∇ E[sg(ρ) k2] = Σ π d ∇log π, which is ∇KL as well. Float64: the
    gradient of ρ k3 at ρ = 1 is d, a difference of exponentials.
    """
    logps_N, reference_N, old_N = logps_N.double(), reference_N.double(), old_N.double()
    rho_N = torch.exp(logps_N - old_N.detach())
    if estimator == "k2":
        rho_N = rho_N.detach()
    return rho_N * kl_estimate(logps_N, reference_N, estimator=estimator)
