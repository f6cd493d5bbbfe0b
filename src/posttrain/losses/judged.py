"""Learning from judged responses without a reference: margins of mean log-probabilities, weights from scores.

Un-reduced. Shapes: B pairs, N responses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .preference import MarginLoss, sigmoid

__all__ = ["RANKING_LOSSES", "hinge", "ranking_margin", "reward_weights"]


def ranking_margin(chosen_B: Tensor, rejected_B: Tensor, *, scale: float = 1.0, gap: float = 0.0) -> Tensor:
    """Return m = s (c − r) − γ of mean log-probabilities per token c and r: positive when the pair is ranked as judged.

    The mean takes away that longer responses are less likely. RRHF's p_i − p_j (Yuan et al. 2023, 2304.05302) with s = 1 and
    γ = 0; SimPO's difference (Meng et al. 2024, 2405.14734) with s = its β and γ its target margin.
    """
    return scale * (chosen_B - rejected_B) - gap


def hinge(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """max(0, −m): nothing is asked once the pair is ranked right by the gap. RRHF's ranking loss, of two responses."""
    if label_smoothing:
        raise ValueError("the hinge loss has no label smoothing: set label_smoothing=0")
    return torch.relu(-margin_B)


RANKING_LOSSES: dict[str, MarginLoss] = {"sigmoid": sigmoid, "hinge": hinge}  # sigmoid: −log σ(m), SimPO's loss


def reward_weights(
    scores_N: Tensor, prompts_N: Tensor, *, beta: float, over: Literal["prompt", "data"] = "prompt"
) -> Tensor:
    """Return weights w ∝ exp(score / β), with mean 1 over all N: large β weighs all alike, small β only the best.

    `over="prompt"`: in proportion within each prompt's responses, and all P prompts alike,
    w_i = (N / P) exp(s_i / β) / Σ_{j: prompt of i} exp(s_j / β), so that a prompt's level (its baseline) does not count:
    among samples of a policy π₀ these are the self-normalised importance weights of π₀(y|x) exp(s / β) / Z(x).
    `over="data"`: w_i = N exp(s_i / β) / Σ_j exp(s_j / β), as in reward-weighted regression (Peters and Schaal 2007); with
    the value of the state taken off each score it is advantage-weighted regression (Peng et al. 2019, 1910.00177).
    `prompts_N` tells prompts apart by any numbers. Raises `ValueError` for a β that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    groups_N = torch.unique(prompts_N, return_inverse=True)[1] if over == "prompt" else torch.zeros_like(prompts_N)
    count = int(groups_N.max()) + 1
    z_N = scores_N.double() / beta
    top_G = torch.full((count,), float("-inf"), dtype=z_N.dtype).scatter_reduce(0, groups_N, z_N, "amax")
    shifted_N = (z_N - top_G[groups_N]).exp()
    sums_G = torch.zeros(count, dtype=z_N.dtype).index_add(0, groups_N, shifted_N)
    return shifted_N / sums_G[groups_N] * (len(z_N) / count)
