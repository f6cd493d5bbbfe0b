"""The policy-gradient family as three functions: ratio level × surrogate × reduction. Un-reduced: one value per token.

    r = π(a) / π_old(a)  per token, or per sequence        L = Σ_tokens c · surrogate(r, A)

GRPO, DAPO, Dr. GRPO, GSPO, CISPO, RLOO and PPO are settings of these. On the first update after sampling π_old is π: then
r = 1 exactly and every surrogate has the gradient −A ∇log π, that of REINFORCE.

Shapes: N trained tokens of a micro-batch, laid end to end; S sequences; `owner_N` is each token's sequence.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .reduce import sequence_sums

__all__ = ["Level", "Reduction", "Surrogate", "clipped", "importance", "log_ratios", "surrogate", "token_weights"]

Level = Literal["token", "sequence"]
Surrogate = Literal["clip", "cispo", "reinforce"]
Reduction = Literal["sequence", "token", "constant", "sum"]


def log_ratios(logps_N: Tensor, old_N: Tensor, owner_N: Tensor, *, sequences: int, level: Level) -> Tensor:
    """Return log r for each token: log π − log π_old, or (sequence) the mean of that over the token's sequence.

    The latter is GSPO's length-normalised sequence ratio (Zheng et al. 2025, 2507.18071, eq. 7).
    """
    differences_N = logps_N - old_N.detach()
    if level == "token":
        return differences_N
    lengths_S = sequence_sums(torch.ones_like(differences_N), owner_N, sequences).clamp(min=1)
    return (sequence_sums(differences_N, owner_N, sequences) / lengths_S)[owner_N]


def surrogate(
    log_ratios_N: Tensor, advantages_N: Tensor, logps_N: Tensor, *,
    kind: Surrogate = "clip", low: float = 0.2, high: float = 0.2, dual: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return what to minimise for each token.

        clip:       −min(r A, clip(r, 1 − low, 1 + high) A)   PPO (Schulman et al. 2017, 1707.06347, eq. 7); low ≠ high
                                                              is DAPO's clip-higher (Yu et al. 2025, 2503.14476, eq. 10)
        cispo:      −sg(min(r, 1 + high)) A log π             CISPO (MiniMax 2025, 2506.13585, eq. 4): no token is dropped
        reinforce:  −A log π                                  Williams 1992

    With `dual` = c > 1, clip's value for A < 0 is at most −c A (Ye et al. 2020, 1912.09729, eq. 5): one token that has
    become very likely does not rule the step.
    """
    advantages_N = advantages_N.detach()
    if kind == "reinforce":
        return -advantages_N * logps_N
    ratios_N = log_ratios_N.exp()
    if kind == "cispo":
        return -ratios_N.detach().clamp(max=1 + high) * advantages_N * logps_N
    gain_N = torch.minimum(ratios_N * advantages_N, ratios_N.clamp(1 - low, 1 + high) * advantages_N)
    if dual:
        gain_N = torch.where(advantages_N < 0, torch.maximum(gain_N, dual * advantages_N), gain_N)
    return -gain_N


def clipped(log_ratios_N: Tensor, advantages_N: Tensor, *, low: float, high: float) -> Tensor:
    """Return for each token whether the clip takes its gradient away: r is beyond the side to which A pushes. Boolean."""
    ratios_N = log_ratios_N.detach().exp()
    return ((ratios_N > 1 + high) & (advantages_N > 0)) | ((ratios_N < 1 - low) & (advantages_N < 0))


def importance(logps_N: Tensor, sampler_N: Tensor, *, cap: float) -> Tensor:
    """Return min(π_old / μ, cap) for each token: truncated importance sampling against the sampler μ, without gradient.

    μ is what the engine that wrote the token says of it; another implementation, or weights of a step before, makes it
    differ from π_old as the trainer computes it (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"). A token whose μ is not known (NaN) weighs 1.
    """
    weights_N = torch.exp(logps_N.detach() - sampler_N).clamp(max=cap)
    return torch.where(sampler_N.isnan(), 1.0, weights_N)


def token_weights(
    owner_N: Tensor, *, in_micro_batch: int, reduction: Reduction, tokens: float, sequences: float, constant: float = 1.0
) -> Tensor:
    """Return c for each token, so that the step's loss is Σ c x over all of its micro-batches. Float64.

        sequence:  1 / (|y| sequences)          every sequence weighs the same (GRPO)
        token:     1 / tokens                   every token of the optimiser step does (DAPO, eq. 12)
        constant:  1 / (constant · sequences)   a fixed length in place of |y| (Dr. GRPO)
        sum:       1 / sequences                the log-probability of a whole sequence (RLOO)

    `tokens` and `sequences` count the whole optimiser step, with what is skipped for having no gradient.
    """
    ones_N = torch.ones(len(owner_N), dtype=torch.double, device=owner_N.device)
    counts = {"token": tokens, "constant": constant * sequences}
    divisor = counts.get(reduction, sequences)
    if not divisor > 0:
        raise ValueError(f"nothing in this optimiser step is trained: {tokens} tokens, {sequences} sequences")
    if reduction == "sequence":
        return ones_N / (sequence_sums(ones_N, owner_N, in_micro_batch)[owner_N] * divisor)
    return ones_N / divisor
