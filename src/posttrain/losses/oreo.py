"""OREO: a policy and a value model that agree with each other and with the rewards, from given responses. Un-reduced.

The policy that maximises E[R] − β KL(π ‖ π_ref) and the soft value of its states satisfy, along any response and from any of
its states on (soft Bellman consistency, telescoped):

    V(s_t) + β Σ_{i ≥ t} ρ_i = R        ρ_i = log π(a_i | s_i) − log π_ref(a_i | s_i)

So the residual δ_t = V(s_t) + β Σ_{i ≥ t} ρ_i − R is 0 for every state of every response, whoever wrote it. Both losses are
its square; the value model's gradient flows through V(s_t) alone, the policy's through the action's own ρ_t alone.

Source: Wang et al. 2024 (2412.16145), the value loss and the policy loss with its stopped future; the consistency is that of
path consistency learning (Nachum et al. 2017, 1702.08892).

Shapes: S states of all responses laid end to end, in order; an action is all that is written from a state to the next one: a
token, a step, or the whole response. `owner_S` is each state's response, in [0, sequences).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["policy_loss", "to_go", "value_loss"]


def to_go(ratios_S: Tensor, owner_S: Tensor, sequences: int) -> Tensor:
    """Return Σ_{i ≥ t} ρ_i over the rest of each state's response: `togo_S`, float64, without gradient."""
    if ratios_S.shape != owner_S.shape:
        raise ValueError(f"ratios {tuple(ratios_S.shape)} do not match owners {tuple(owner_S.shape)}")
    ratios_S = ratios_S.detach().double()
    past_S = ratios_S.cumsum(0)
    ends_S = ratios_S.new_zeros(sequences).index_add(0, owner_S, ratios_S).cumsum(0)[owner_S]
    return ends_S - past_S + ratios_S


def value_loss(values_S: Tensor, togo_S: Tensor, rewards_S: Tensor, *, beta: float) -> Tensor:
    """(V(s_t) + β sg Σ_{i ≥ t} ρ_i − R)², per state. Gradient by V(s_t): 2 δ_t."""
    return (values_S + (beta * togo_S.detach() - rewards_S).to(values_S)).square()


def policy_loss(values_S: Tensor, ratios_S: Tensor, togo_S: Tensor, rewards_S: Tensor, *, beta: float) -> Tensor:
    """(sg V(s_t) + β (ρ_t + sg Σ_{i > t} ρ_i) − R)², per state. Gradient by ρ_t: 2 β δ_t.

    Its value is that of the form without sg. There every ρ_i would have the gradient 2 β Σ_{t ≤ i} δ_t, of all states before
    it, so that late actions move most; with sg an action answers for the state it was taken in.
    """
    future_S = togo_S.detach() - ratios_S.detach().double()
    constant_S = values_S.detach().double() + beta * future_S - rewards_S
    return (beta * ratios_S + constant_S.to(ratios_S)).square()
