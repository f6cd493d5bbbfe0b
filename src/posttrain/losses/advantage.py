"""Advantages of several samples of each prompt, without a critic: how much better a sample is than the others are.

Shapes: P prompts, K samples of each; rewards in any unit, advantages in it or in standard deviations.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

__all__ = ["Baseline", "Scale", "group_advantages"]

Baseline = Literal["mean", "leave_one_out", "zero"]
Scale = Literal["group", "batch", "one"]
EPSILON = 1e-6  # of a standard deviation; a group of equal rewards has advantages of exactly 0


def group_advantages(rewards_PK: Tensor, *, baseline: Baseline = "mean", scale: Scale = "group") -> Tensor:
    """Return `advantages_PK`: A = (R − b) / s.

    `baseline` b is the mean of the prompt's samples (GRPO: Shao et al. 2024, 2402.03300, section 4.1.2), the mean of the
    other ones (RLOO: Ahmadian et al. 2024, 2402.14740, section 2.3), or nothing. `scale` s is the standard deviation of the
    prompt's samples (GRPO), that of the whole batch's A, whose mean is taken away as well (REINFORCE++: Hu 2025,
    2501.03262), or 1 (Dr. GRPO: Liu et al. 2025, 2503.20783). Standard deviations divide by n − 1, as the published
    implementations do. No gradient passes.

    Raises `ValueError` for a baseline or a scale of a group with fewer than 2 samples.
    """
    if rewards_PK.ndim != 2:
        raise ValueError(f"rewards must be [prompts, samples], got {tuple(rewards_PK.shape)}")
    samples = rewards_PK.shape[1]
    if samples < 2 and (baseline != "zero" or scale == "group"):
        raise ValueError(f"a group of {samples} sample has nothing to be compared with: take 2 or more samples a prompt")
    rewards_PK = rewards_PK.detach().double()
    mean_P1 = rewards_PK.mean(1, keepdim=True)
    found = rewards_PK
    if baseline == "mean":
        found = rewards_PK - mean_P1
    elif baseline == "leave_one_out":  # R_i − mean of the others = (R_i − mean of all) · K / (K − 1)
        found = (rewards_PK - mean_P1) * samples / (samples - 1)
    if baseline != "zero":  # what rounding leaves of equal rewards is no advantage
        found = found.masked_fill((rewards_PK == rewards_PK[:, :1]).all(1, keepdim=True), 0.0)
    if scale == "group":
        return found / (rewards_PK.std(1, keepdim=True) + EPSILON)
    if scale == "batch":
        if found.numel() < 2 or bool((found == found.flatten()[0]).all()):
            return found * 0.0
        return (found - found.mean()) / (found.std() + EPSILON)
    return found
