"""Advantages from a value model, and the loss that fits one: what an action brought beyond what its state promised.

Shapes: N actions (tokens that the policy wrote) of all sequences laid end to end; `owner_N` is each one's sequence. What
stands between two actions of a sequence (a tool's output, another turn) is no action and is not among the N: the state
behind an action is the one in front of the next *action*.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["advantages", "value_clipped", "value_loss", "whitened"]

EPSILON = 1e-8  # of a variance


def advantages(
    rewards_N: Tensor, values_N: Tensor, owner_N: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and the returns to fit V to: (`advantages_N`, `returns_N`), float64.

        δ_t = r_t + γ V(s_{t+1}) − V(s_t)        A_t = Σ_{l ≥ 0} (γ λ)^l δ_{t+l}        returns: A_t + V(s_t)

    V behind a sequence's last action is 0: nothing comes after it. λ = 1: A = Σ γ^l r − V; λ = 0: A = δ. No gradient passes.

    Source: Schulman et al. 2016 (1506.02438), eq. 16. Sums run over actions alone: with zeros where the environment wrote,
    each of its tokens would cost a factor λ and put its own value in the place of the next state's. Raises `ValueError` for
    a sequence whose actions do not stand together.
    """
    if not rewards_N.shape == values_N.shape == owner_N.shape:
        raise ValueError(f"rewards {tuple(rewards_N.shape)}, values {tuple(values_N.shape)} and owners do not match")
    owners = owner_N.tolist()
    if any(b < a for a, b in pairwise(owners)):
        raise ValueError("the actions of a sequence must stand together, sequence by sequence")
    rewards, values = rewards_N.detach().double().tolist(), values_N.detach().double().tolist()
    found = [0.0] * len(owners)
    ahead = following = 0.0
    for t in range(len(owners) - 1, -1, -1):
        if t + 1 == len(owners) or owners[t + 1] != owners[t]:
            ahead, following = 0.0, 0.0
        ahead = rewards[t] + gamma * following - values[t] + gamma * lam * ahead
        found[t], following = ahead, values[t]
    advantages_N = torch.tensor(found, dtype=torch.double, device=values_N.device)
    return advantages_N, advantages_N + values_N.detach().double()


def whitened(values_N: Tensor) -> Tensor:
    """Return (x − mean) / std over all of a step's actions at once.

    Over parts of a step (micro-batches, processes) each would have a mean and a scale of its own, and the update would
    depend on how the step is cut. The variance divides by n, as OpenAI's `whiten` does.
    """
    values_N = values_N.detach().double()
    mean = values_N.mean()
    variance = (values_N - mean).square().mean()
    return (values_N - mean) * torch.rsqrt(variance + EPSILON)


def value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, *, clip: float = 0.0) -> Tensor:
    """½ (V − R)², per action; with `clip` = ε: ½ max( (V − R)², (clip(V, V_old − ε, V_old + ε) − R)² ).

    The larger of both: V has no gradient once it is ε beyond V_old on R's side, and has one wherever it is on the other.
    Source: OpenAI's baselines (ppo2), as told by Huang et al. 2022, "The 37 implementation details of PPO", detail 9.
    Gradient by V: V − R, or 0.
    """
    old_N, returns_N = old_N.detach().to(values_N), returns_N.detach().to(values_N)
    plain_N = (values_N - returns_N).square()
    if not clip:
        return plain_N / 2
    near_N = old_N + (values_N - old_N).clamp(-clip, clip)
    return torch.maximum(plain_N, (near_N - returns_N).square()) / 2


def value_clipped(values_N: Tensor, old_N: Tensor, returns_N: Tensor, *, clip: float) -> Tensor:
    """Return for each action whether the clip takes V's gradient away. Boolean; nowhere with `clip` = 0."""
    values_N, old_N, returns_N = values_N.detach(), old_N.detach().to(values_N), returns_N.detach().to(values_N)
    beyond_N = (values_N - old_N).abs() > clip if clip else torch.zeros_like(values_N, dtype=torch.bool)
    near_N = old_N + (values_N - old_N).clamp(-clip, clip)
    return beyond_N & ((near_N - returns_N).square() > (values_N - returns_N).square())
