"""Losses of reward models: from rewards and what people (or verifiers) preferred. Un-reduced.

A reward r(x, y) is one number for a whole reply. Comparisons are index pairs: reply `better_C[c]` was preferred to reply
`worse_C[c]`, so that all comparisons among K replies use each reply's reward, computed once.

Shapes: N replies, C comparisons, S reasoning steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import soft

__all__ = ["bradley_terry", "centring", "plackett_luce", "step_cross_entropy"]


def bradley_terry(
    rewards_N: Tensor,
    better_C: Tensor,
    worse_C: Tensor,
    gap_C: Tensor | float = 0.0,
    preference_C: Tensor | None = None,
) -> Tensor:
    """−log σ(r_better − r_worse − m), per comparison.

    Bradley and Terry 1952: P(i beats j) = σ(r_i − r_j); as a loss of rewards: Stiennon et al. 2020 (2009.01325), section
    3.4; with the K(K − 1)/2 comparisons of a ranking in Ouyang et al. 2022 (2203.02155), eq. 1. m ≥ 0, a gap that must be
    exceeded: Touvron et al. 2023 (2307.09288). Gradient by r_better: σ(r_better − r_worse − m) − 1.

    With soft labels p = P(better is the better one) and d the difference: −p log σ(d) − (1 − p) log σ(−d), the cross-entropy
    to the label (Lee et al. 2023, 2309.00267), without a gap. Gradient by r_better: σ(d) − p.
    """
    difference_C = rewards_N[better_C] - rewards_N[worse_C]
    if preference_C is None:
        return -logsigmoid(difference_C - gap_C)
    return soft(lambda d: -logsigmoid(d), difference_C, preference_C)


def plackett_luce(rewards_K: Tensor, ranks_K: Tensor) -> Tensor:
    """−log P(i is chosen among itself and all that are ranked worse), per choice i of one ranking; rank 1 is the best.

        L_i = log Σ_{j: j = i or rank_j > rank_i} exp r_j − r_i

    One value for each reply that something is ranked below; their sum is −log of the ranking's probability (Luce 1959;
    Plackett 1975). Replies with equal ranks are not compared: each is chosen over the worse ones by itself, so that a tie
    neither pulls nor pushes. Of two replies it is Bradley and Terry's. Raises `ValueError` when all ranks are equal.
    """
    if rewards_K.shape != ranks_K.shape or rewards_K.ndim != 1:
        raise ValueError(f"rewards {tuple(rewards_K.shape)} and ranks {tuple(ranks_K.shape)} must be [K] both")
    worse_KK = ranks_K[None, :] > ranks_K[:, None]
    if not bool(worse_KK.any()):
        raise ValueError("all replies have one rank, so nothing is preferred")
    allowed_KK = worse_KK | torch.eye(len(ranks_K), dtype=torch.bool, device=ranks_K.device)
    sums_K = rewards_K[None, :].masked_fill(~allowed_KK, float("-inf")).logsumexp(-1)
    return (sums_K - rewards_K)[worse_KK.any(-1)]


def centring(rewards_N: Tensor, better_C: Tensor, worse_C: Tensor) -> Tensor:
    """(r_better + r_worse)², per comparison: keeps rewards near 0, which comparisons alone leave undetermined.

    Eisenstein et al. 2023 (2312.09244), eq. 2. Gradient by either reward: 2 (r_better + r_worse).
    """
    return (rewards_N[better_C] + rewards_N[worse_C]).square()


def step_cross_entropy(logits_S2: Tensor, right_S: Tensor) -> Tensor:
    """−y log p − (1 − y) log(1 − p) with p = softmax(z)₁, per step: label 1 is "right".

    y is 1 or 0 for judged steps (Lightman et al. 2023, 2305.20050, section 2.6), or a share of rollouts that came out right
    (Wang et al. 2023, Math-Shepherd, 2312.08935, eq. 3 and 4). Gradient by z₁: p − y; by z₀: y − p.
    """
    z_S = logits_S2[:, 1] - logits_S2[:, 0]
    return -right_S * logsigmoid(z_S) - (1 - right_S) * logsigmoid(-z_S)
