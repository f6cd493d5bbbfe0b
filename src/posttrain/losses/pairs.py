"""The loss of a pair, composed: what a response is worth × what is asked of the margin, and likelihood if wanted.

    h = log π(y|x) − log π_ref(y|x), summed over the tokens of y     without the reference: log π(y|x)
    s = link(h), or of h / |y|                                       per token where the member says so
    m = β s_chosen − β s_rejected                                    the implicit reward's margin
    L = φ(m) − w log π(y_chosen|x) / |y_chosen|

    member    reference  per token  link      φ                      w      source
    sigmoid   yes        –          f'        −log σ(m), smoothed    –      DPO 2305.18290 (7)
    robust    yes        –          f'        unbiased under flips   –      rDPO 2403.00409
    hinge     yes        –          f'        max(0, 1 − m)          –      SLiC 2309.06657
    ipo       yes        yes        –         (m/β − 1/(2β))²        –      IPO 2310.12036 (17)
    simpo     no         yes        –         −log σ(m − γ)          –      SimPO 2405.14734 (6)
    cpo       no         –          –         −log σ(m), smoothed    1      CPO 2401.08417 (3)
    orpo      no         yes        log odds  −β log σ(m)            1      ORPO 2403.07691 (6, 7); its m has no β

`per_token`, `reference_free` and `likelihood` move the first three along these columns: sigmoid per token is
length-normalised DPO (Tülu 3, 2411.15124), sigmoid with w is RPO (Pang et al. 2024, 2404.19733).
A pair with a soft label p = P(chosen is better) has the loss that is expected over both labels (`preference.soft`):

    L = p φ(m) + (1 − p) φ(−m) − w [ p log π(y_chosen|x) / |y_chosen| + (1 − p) log π(y_rejected|x) / |y_rejected| ]

Two take none: robust assumes hard labels wrong at one rate, and the hinge is least at m = 1 for every p > ½.
Shapes: B pairs; B2: chosen, rejected. Un-reduced, and pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import hinge, implicit_reward, robust, sigmoid, soft, squared

__all__ = ["FAMILY", "FDivergence", "Member", "PairLoss", "PairLossName", "cross_entropy", "link", "log_odds"]

PairLossName = Literal["sigmoid", "robust", "hinge", "ipo", "simpo", "cpo", "orpo"]
FDivergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of the family: φ, the settings it reads beside β, and what it fixes."""

    phi: Callable[[Tensor, PairLoss], Tensor]
    reads: frozenset[str]
    per_token: bool = False
    reference_free: bool = False
    likelihood: float = 0.0
    soft: bool = False  # takes soft labels


_CHOICES = frozenset({"per_token", "reference_free", "likelihood", "f_divergence", "f_alpha"})
_SMOOTHED = frozenset({"label_smoothing"})

FAMILY: dict[PairLossName, Member] = {
    "sigmoid": Member(phi=lambda m, s: sigmoid(m, s.label_smoothing), reads=_CHOICES | _SMOOTHED, soft=True),
    "robust": Member(phi=lambda m, s: robust(m, s.label_smoothing), reads=_CHOICES | _SMOOTHED),
    "hinge": Member(phi=lambda m, s: hinge(m), reads=_CHOICES),
    "ipo": Member(
        phi=lambda m, s: squared(m, beta=s.beta), reads=frozenset({"reference_free", "likelihood"}), per_token=True,
        soft=True,
    ),
    "simpo": Member(
        phi=lambda m, s: sigmoid(m - s.gap), reads=frozenset({"gap", "likelihood"}), per_token=True, reference_free=True,
        soft=True,
    ),
    "cpo": Member(
        phi=lambda m, s: sigmoid(m, s.label_smoothing), reads=_SMOOTHED, reference_free=True, likelihood=1.0, soft=True
    ),
    "orpo": Member(
        phi=lambda m, s: s.beta * sigmoid(m), reads=frozenset(), per_token=True, reference_free=True, likelihood=1.0,
        soft=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """A member with its settings: the loss and the implicit rewards of pairs, from summed log-probabilities."""

    loss: PairLossName = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0  # ε
    gap: float = 0.0  # γ
    per_token: bool = False
    reference_free: bool = False
    f_divergence: FDivergence = "reverse_kl"
    f_alpha: float = 0.5
    likelihood: float = 0.0  # w

    @classmethod
    def of(cls, settings: Any) -> PairLoss:
        """Read a trainer's settings, whose fields have the same names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def needs_reference(self) -> bool:
        """Whether log π_ref is read."""
        return not (self.reference_free or FAMILY[self.loss].reference_free)

    @property
    def likelihood_weight(self) -> float:
        """Return w: the member's own, or the setting."""
        return FAMILY[self.loss].likelihood or self.likelihood

    @property
    def takes_soft(self) -> bool:
        """Whether pairs may have soft labels."""
        return FAMILY[self.loss].soft

    def rewards(self, policy_B2: Tensor, reference_B2: Tensor, tokens_B2: Tensor) -> Tensor:
        """Return β s, what a response is worth (ORPO: s): `rewards_B2`. The reference is ignored by those that need none."""
        if self.loss == "orpo":
            return log_odds(policy_B2 / tokens_B2)
        per_token = self.per_token or FAMILY[self.loss].per_token
        if self.f_divergence != "reverse_kl":
            return self.beta * link(policy_B2 - reference_B2, self.f_divergence, alpha=self.f_alpha)
        reference_B2 = reference_B2 if self.needs_reference else torch.zeros_like(reference_B2)
        if per_token:
            return implicit_reward(policy_B2 / tokens_B2, reference_B2 / tokens_B2, beta=self.beta)
        return implicit_reward(policy_B2, reference_B2, beta=self.beta)

    def __call__(
        self, policy_B2: Tensor, reference_B2: Tensor, tokens_B2: Tensor, preference_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `losses_B` and `rewards_B2`; `preference_B` are soft labels, None: every chosen one is the better.

        Raises `ValueError` for soft labels that the loss takes none of.
        """
        rewards_B2 = self.rewards(policy_B2, reference_B2, tokens_B2)
        margin_B, phi = rewards_B2[:, 0] - rewards_B2[:, 1], FAMILY[self.loss].phi
        if preference_B is not None and not self.takes_soft:
            raise ValueError(f"loss={self.loss} takes no soft labels")
        losses_B = phi(margin_B, self) if preference_B is None else soft(lambda m: phi(m, self), margin_B, preference_B)
        if self.likelihood_weight:
            losses_B = losses_B + self.likelihood_weight * cross_entropy(policy_B2, tokens_B2, preference_B)
        return losses_B, rewards_B2


def cross_entropy(policy_B2: Tensor, tokens_B2: Tensor, preference_B: Tensor | None = None) -> Tensor:
    """Return −log π(y|x) / |y| of the chosen response, in nats a token; of soft labels what is expected over both. `_B`."""
    means_B2 = -policy_B2 / tokens_B2
    if preference_B is None:
        return means_B2[:, 0]
    return preference_B * means_B2[:, 0] + (1 - preference_B) * means_B2[:, 1]


def link(h: Tensor, divergence: FDivergence, *, alpha: float = 0.5) -> Tensor:
    """Return f'(u) of u = π/π_ref = exp(h), less its constant: the reward under an f-divergence to the reference.

    reverse_kl: h. forward_kl: 1 − 1/u. js: log 2u/(1+u). alpha: (1 − u^−α)/α, which is the reverse KL for α → 0 and the
    forward one for α = 1. Wang et al. 2023 (2309.16240). In float64, where exp(−h) is finite down to h = −709.
    """
    if divergence == "reverse_kl":
        return h
    h = h.double()
    if divergence == "js":
        return math.log(2) + logsigmoid(h)
    power = alpha if divergence == "alpha" else 1.0
    return -torch.expm1(-power * h) / power


def log_odds(mean_logps: Tensor) -> Tensor:
    """Return log p/(1 − p) of p = exp(mean log-probability per token): ORPO's score (2403.07691, eq. 4).

    At p = 1, where the odds are infinite, value and slope are those at log p = −1e-6: else a rejected response that the
    model is sure of would have no gradient, or none that is a number.
    """
    inside = mean_logps + (mean_logps.clamp(max=-1e-6) - mean_logps).detach()
    return inside - torch.log(-torch.expm1(inside))
