"""Preference losses as functions of a pair's margin. Un-reduced: one value per pair, shape [B].

With h = log π(y|x) − log π_ref(y|x) summed over the response's tokens, a pair has one margin

    m = β (h_chosen − h_rejected)

and the DPO family differs in what stands in the place of h (`losses/pairs.py`) and in the function applied to m: so a loss
is a function of m, and another family member another function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["MarginLoss", "agreed", "hinge", "implicit_reward", "robust", "sigmoid", "soft", "squared"]

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


def robust(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Robust DPO: [−(1−ε) log σ(m) + ε log σ(−m)] / (1−2ε), per pair (Chowdhury et al. 2024, 2403.00409).

    Its mean over labels that were flipped with probability ε is DPO's loss on the true ones. Unbounded below for wrong
    labels. Gradient: σ(m) − (1−ε) / (1−2ε).
    """
    _check_smoothing(label_smoothing, below=0.5)
    kept, flipped = -logsigmoid(margin_B), -logsigmoid(-margin_B)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """SLiC on the normalised likelihood: max(0, 1 − m), per pair (Liu et al. 2023, 2309.06657)."""
    if label_smoothing:
        raise ValueError("the hinge loss has no label smoothing: set label_smoothing=0")
    return torch.relu(1 - margin_B)


def squared(margin_B: Tensor, *, beta: float) -> Tensor:
    """IPO: (m/β − 1/(2β))², per pair (Azar et al. 2023, 2310.12036, eq. 17, with its τ as β): the margin's target is ½.

    m is of mean log-ratios per token: of sums, the target would be reached by long responses alone. Gradient by m:
    2 (m − ½) / β².
    """
    return ((margin_B - 0.5) / beta).square()


def soft(loss: Callable[[Tensor], Tensor], margin_B: Tensor, preference_B: Tensor) -> Tensor:
    """Return p φ(m) + (1 − p) φ(−m): the loss expected of a pair whose label is right with probability p, per pair.

    With φ = −log σ it is the cross-entropy of σ(m) to the soft label p, least at m = logit(p), 0 for a tie: the loss of a
    reward model on an AI's labels in Lee et al. 2023 (2309.00267), and conservative DPO's with ε = 1 − p for each pair
    (Mitchell 2023, eq. 3). Gradient by m: σ(m) − p. With IPO's square it is its paper's objective (2310.12036, eq. 17) over
    both labels, least at m = p − ½. p = 1 gives φ(m).
    """
    return preference_B * loss(margin_B) + (1 - preference_B) * loss(-margin_B)


def agreed(margin_B: Tensor, preference_B: Tensor) -> Tensor:
    """Return 1 where the margin's sign is the likelier label's, else 0; ½ for a tie, of which no sign is right. Float64."""
    leaning_B = preference_B - 0.5
    return torch.where(leaning_B == 0, 0.5, (margin_B * leaning_B > 0).double())


def _check_smoothing(value: float, *, below: float) -> None:
    if not 0 <= value < below:
        raise ValueError(f"label_smoothing must be in [0, {below}), got {value}")
