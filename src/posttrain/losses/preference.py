"""Preference losses as functions of log-probabilities. Un-reduced: one value per pair, shape [B].

With h = log π(y|x) − log π_ref(y|x) summed over the response's tokens, a pair has one margin

    m = β (h_chosen − h_rejected)

and the DPO family differs only in the function applied to it. So a loss is a function of m; another family member is
another line.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["MARGIN_LOSSES", "MarginLoss", "hinge", "implicit_reward", "sigmoid"]

MarginLoss = Callable[[Tensor, float], Tensor]


def implicit_reward(policy_B: Tensor, reference_B: Tensor, *, beta: float) -> Tensor:
    """Return β (log π − log π_ref): the reward DPO's policy is optimal for, up to a prompt's constant (eq. 5)."""
    return beta * (policy_B - reference_B)


def sigmoid(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO: −(1−ε) log σ(m) − ε log σ(−m), per pair.

    ε = 0: Rafailov et al. 2023 (2305.18290), eq. 7. ε > 0: conservative DPO, the label is wrong with probability ε
    (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3). Gradient: σ(m) − 1 + ε.
    """
    _check_smoothing(label_smoothing, below=0.5)
    return -(1 - label_smoothing) * logsigmoid(margin_B) - label_smoothing * logsigmoid(-margin_B)


def hinge(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """SLiC on the normalised likelihood: max(0, 1 − m), per pair (Liu et al. 2023, 2309.06657, table 1)."""
    if label_smoothing:
        raise ValueError("the hinge loss has no label smoothing: set label_smoothing=0")
    return torch.relu(1 - margin_B)


MARGIN_LOSSES: dict[str, MarginLoss] = {"sigmoid": sigmoid, "hinge": hinge}


def _check_smoothing(value: float, *, below: float) -> None:
    if not 0 <= value < below:
        raise ValueError(f"label_smoothing must be in [0, {below}), got {value}")
