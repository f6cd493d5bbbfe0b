"""Direct preference optimisation (Rafailov et al. 2023, 2305.18290) and its family: preferences without a reward model.

With h(y) = log π(y|x) − log π_ref(y|x), summed over the response's tokens, and m = β (h(chosen) − h(rejected)):

    L = − log σ(m)      per pair (eq. 7), averaged over the pairs of the optimiser step

`loss` and its settings put something else in the place of h and of −log σ: the table in `losses/pairs.py`.
The reference π_ref is the start checkpoint; its log-probabilities are computed once and kept in `out/reference`. The
members without a reference (simpo, cpo, orpo) spare that.

Metrics: `margin` (mean m), `accuracy` (share of pairs with m > 0; with soft labels, on the side of the likelier one; a tie
counts half), `reward_chosen` and `reward_rejected` (β h),
`logp_chosen` and `logp_rejected`; with a reference `change_chosen`, `change_rejected` (h) and `kl` (their mean, negated:
an estimate of KL(π_ref ‖ π) where the responses are the start's own samples). Both log-probabilities often fall during
DPO. That is no defect by itself: the loss sees only the difference, and a chosen response that is unlikely to begin with
shares most of its tokens with the rejected one. It becomes one when the probability goes to responses outside the data;
then lower `lr`, raise `beta` or `likelihood`, or fine-tune on the chosen responses first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import Checkpoint, ModelShape
from ..data.judged_rows import soft_label
from ..data.masks import Encoded
from ..engines.local.replies import replies
from ..losses.pairs import FAMILY, FDivergence, PairLoss, PairLossName, cross_entropy
from ..losses.preference import agreed
from ..losses.reduce import sequence_sums
from ..models.forward import Forward
from ..models.sharing import shared_prefix
from ..training.rows import encode_pair, fits, refuse_soft_labels
from ..training.schedule import Schedule
from ..training.session import Session
from ..training.settings import TrainerSettings
from ..training.step import Work
from ._reference import both_fell, start_logps, work_of

__all__ = ["Dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo(TrainerSettings):
    """DPO and its family (cDPO, robust DPO, IPO, SLiC, RPO, SimPO, CPO, ORPO): learn from pairs of responses.

    Rows are `{"prompt": text or messages, "chosen": text, "rejected": text}`; `chosen` and `rejected` may also be lists of
    messages, then `prompt` may be left out when both begin with it. `preference`, a soft label, is the probability that
    `chosen` is the better one (default 1): the loss is then what is expected over both labels, p φ(m) + (1 − p) φ(−m). A
    pair of which a response does not fit into `max_length` tokens (0: the model's context) is an error that names it;
    `too_long="drop"` leaves it out and counts it. An adapter wants an `lr` some ten times higher than all weights.
    """

    version: ClassVar[str] = "1"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv 2305.18290"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "4 forward passes per token of both responses, once, and making the pairs; nothing per query"
    fails: ClassVar[str] = "too few pairs or too small lr: nothing moves; too large lr: the right responses fall as well"
    known_as: ClassVar[Mapping[str, str]] = {  # names of the literature that are settings here
        "cdpo": "dpo:label_smoothing=0.1",
        "rdpo": "dpo:loss=robust,label_smoothing=0.1",
        "robust_dpo": "dpo:loss=robust,label_smoothing=0.1",
        "ipo": "dpo:loss=ipo",
        "slic": "dpo:loss=hinge",
        "rpo": "dpo:likelihood=1",
        "simpo": "dpo:loss=simpo,beta=2,gap=1",
        "cpo": "dpo:loss=cpo",
        "orpo": "dpo:loss=orpo",
    }

    beta: float = 0.1
    loss: PairLossName = "sigmoid"
    label_smoothing: float = 0.0  # probability that a label is wrong (conservative and robust DPO)
    gap: float = 0.0  # by how much the margin must be positive (SimPO's γ)
    per_token: bool = False  # mean log-probabilities in place of sums
    reference_free: bool = False  # log π in place of log π − log π_ref
    f_divergence: FDivergence = "reverse_kl"  # to the reference, of which the loss is derived
    f_alpha: float = 0.5  # of f_divergence=alpha
    likelihood: float = 0.0  # weight of the chosen response's mean negative log-probability (RPO)
    lr: float = 1e-6
    schedule: Schedule = "linear"
    warmup: float = 0.1

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        session = Session.open(self, start, data, out, seed=seed)
        if session.done is not None:
            return session.done
        pairs, dropped = self._encode(session)
        objective = _Objective(
            self, session.opened.loaded.shape, session.frozen_backbone, session.module.packs, session.virtual_flops
        )
        facts: dict[str, Any] = {"dropped_too_long": dropped}
        if soft := sum(pair.preference != 1 for pair in pairs):
            facts["soft_labels"] = soft
        cost = None
        if PairLoss.of(self).needs_reference:
            reference, cost = start_logps(session, [pair.group for pair in pairs])
            pairs = [replace(pair, reference=(values[0], values[1])) for pair, values in zip(pairs, reference, strict=True)]
        mend = "" if self.likelihood else "add the chosen responses' likelihood to the loss (likelihood=1)"
        closing = partial(both_fell, mend=mend)
        return session.train(objective, pairs, facts=facts, cost=cost, generate=replies, closing=closing)

    def _check_settings(self) -> None:
        member = FAMILY[self.loss]
        for field in fields(PairLoss):
            value = getattr(self, field.name)
            if field.name not in ("loss", "beta", *member.reads) and value != field.default:
                raise ConfigError(f"dpo: {field.name} = {value} has no effect with loss={self.loss}: leave it out")
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5 or self.gap < 0 or self.likelihood < 0:
            raise ConfigError(
                f"dpo: beta = {self.beta} must be positive, label_smoothing = {self.label_smoothing} in [0, 0.5), gap = "
                f"{self.gap} and likelihood = {self.likelihood} not negative"
            )
        if self.loss == "simpo" and self.beta == type(self)().beta:
            raise ConfigError(
                f"dpo: loss=simpo compares means per token, for which beta = {self.beta}, made for sums, asks next to "
                "nothing: set beta (its paper: 2 to 10) and gap (0.3 to 1.6)"
            )
        if self.f_divergence != "reverse_kl" and (self.per_token or self.reference_free):
            raise ConfigError(
                f"dpo: f_divergence={self.f_divergence} is a function of the responses' probabilities under both models: "
                "leave per_token and reference_free out"
            )
        if self.f_divergence != "alpha" and self.f_alpha != type(self)().f_alpha:
            raise ConfigError(f"dpo: f_alpha = {self.f_alpha} belongs to f_divergence=alpha: leave it out")
        if not 0 < self.f_alpha < 1:
            raise ConfigError(f"dpo: f_alpha = {self.f_alpha} must be between 0 (the reverse KL) and 1 (the forward KL)")

    def _encode(self, session: Session) -> tuple[list[_Pair], int]:
        tokenizer, limit = session.opened.loaded.tokenizer, self.max_length or session.opened.context
        encoded = [encode_pair(tokenizer, row, where=session.where(i)) for i, row in enumerate(session.rows)]
        labels = [self._label(row, session.where(i)) for i, row in enumerate(session.rows)]
        pairs = [_Pair(i, pair, shared_prefix(pair), preference=labels[i]) for i, pair in enumerate(encoded)]
        kept = [p for p in pairs if fits(p.longest, limit, too_long=self.too_long, where=session.where(p.row))]
        return kept, len(pairs) - len(kept)

    def _label(self, row: Mapping[str, Any], where: str) -> float:
        """Return the probability that the chosen response is the better one."""
        if not PairLoss.of(self).takes_soft:
            refuse_soft_labels(row, where=where, why=f"dpo's loss={self.loss} takes only hard ones")
        label = soft_label(row, where)
        return 1.0 if label is None else label


@dataclass(frozen=True, slots=True)
class _Pair:
    row: int
    group: tuple[Encoded, Encoded]  # chosen, rejected
    prefix: int  # tokens in common
    reference: tuple[float, float] = (0.0, 0.0)  # log π_ref of each
    preference: float = 1.0  # P(chosen is the better one)

    @property
    def longest(self) -> int:
        return max(len(encoded.ids) for encoded in self.group)


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: Dpo
    shape: ModelShape
    frozen_backbone: bool
    shares: bool
    virtual_flops: Callable[..., float] | None = None

    def work(self, item: _Pair, *, backward: bool = True) -> Work:
        return work_of(
            item.group, shape=self.shape, prefix=item.prefix if self.shares else 0, backward=backward,
            frozen_backbone=self.frozen_backbone, virtual_flops=self.virtual_flops,
        )  # fmt: skip

    def totals(self, items: Sequence[_Pair]) -> int:
        return len(items)

    def __call__(self, module: Forward, items: Sequence[_Pair], totals: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = module.batch([item.group for item in items])
        logps_N = module(batch)
        policy_B2 = sequence_sums(logps_N, batch.owner_N.to(logps_N.device), batch.sequences).view(-1, 2)
        reference_B2 = torch.tensor([item.reference for item in items], dtype=torch.double).to(policy_B2)
        tokens_B2 = torch.tensor([[e.trained for e in item.group] for item in items]).to(policy_B2)
        loss = PairLoss.of(self.method)
        soft = any(item.preference != 1 for item in items)
        preference_B = policy_B2.new_tensor([item.preference for item in items])
        given_B = preference_B if soft else None
        losses_B, rewards_B2 = loss(policy_B2, reference_B2, tokens_B2, given_B)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        measures = {
            "margin": margin_B,
            "accuracy": agreed(margin_B, preference_B),
            "reward_chosen": rewards_B2[:, 0],
            "reward_rejected": rewards_B2[:, 1],
            "logp_chosen": policy_B2[:, 0],
            "logp_rejected": policy_B2[:, 1],
        }
        if loss.needs_reference:
            change_B2 = policy_B2 - reference_B2
            measures |= {
                "change_chosen": change_B2[:, 0], "change_rejected": change_B2[:, 1], "kl": -change_B2.mean(1)
            }  # fmt: skip
        if loss.likelihood_weight:
            measures["cross_entropy"] = cross_entropy(policy_B2, tokens_B2, given_B)
        return losses_B.sum() / totals, {name: value.detach().sum() / totals for name, value in measures.items()}
