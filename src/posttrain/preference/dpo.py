"""Direct preference optimisation (Rafailov et al. 2023, 2305.18290): preferences without a reward model or sampling.

With h(y) = log π(y|x) − log π_ref(y|x), summed over the response's tokens, and m = β (h(chosen) − h(rejected)):

    L = − log σ(m)      per pair (eq. 7), averaged over the pairs of the optimiser step

The reference π_ref is the start checkpoint; its log-probabilities are computed once and kept in `out/reference`.

Metrics: `margin` (mean m), `accuracy` (share of pairs with m > 0), `reward_chosen` and `reward_rejected` (β h),
`logp_chosen` and `logp_rejected`. Both log-probabilities often fall during DPO. That is no defect by itself: the loss sees
only the difference, and a chosen response that is unlikely to begin with shares most of its tokens with the rejected one.
It becomes one when the probability goes to responses outside the data; then lower `lr`, raise `beta`, or fine-tune on
the chosen responses first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.types import Checkpoint, ModelShape
from ..data.masks import Encoded
from ..engines.local.replies import replies
from ..losses.preference import MARGIN_LOSSES, implicit_reward
from ..losses.reduce import sequence_sums
from ..models.forward import Forward
from ..models.sharing import shared_prefix
from ..training.optimiser import Schedule
from ..training.reference import reference_logps
from ..training.rows import encode_pair
from ..training.session import Session, group_work
from ..training.settings import TrainerSettings
from ..training.step import Work

__all__ = ["Dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo(TrainerSettings):
    """DPO of all weights or of an adapter (which wants an `lr` some ten times higher).

    Rows are `{"prompt": text or messages, "chosen": text, "rejected": text}`; `chosen` and `rejected` may also be lists of
    messages, then `prompt` may be left out when both begin with it. A pair of which a response does not fit into
    `max_length` tokens (0: the model's context) is an error that names it; `too_long="drop"` leaves it out and counts it.
    """

    version: ClassVar[str] = "1"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv 2305.18290"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "4 forward passes per token of both responses, once, and making the pairs; nothing per query"
    fails: ClassVar[str] = "too few pairs or too small lr: nothing moves; too large lr: the right responses fall as well"

    beta: float = 0.1
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    label_smoothing: float = 0.0  # probability that a label is wrong (conservative DPO)
    lr: float = 1e-6
    schedule: Schedule = "linear"
    warmup: float = 0.1

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5 or (self.loss == "hinge" and self.label_smoothing):
            raise ConfigError(
                f"dpo: beta = {self.beta} must be positive and label_smoothing = {self.label_smoothing} in [0, 0.5) "
                "(0 with loss=hinge)"
            )
        session = Session.open(self, start, data, out, seed=seed)
        if session.done is not None:
            return session.done
        pairs, dropped = self._encode(session)
        objective = _Objective(
            self, session.opened.loaded.shape, session.frozen_backbone, session.module.packs, session.virtual_flops
        )
        start_model = session.reference
        apart = (
            replace(objective, shares=start_model.packs, virtual_flops=None) if session.opened.starts_apart else objective
        )
        reference, cost = reference_logps(
            start_model, [pair.group for pair in pairs], [apart.work(pair, backward=False) for pair in pairs],
            out=out, key=session.key, tokens_per_microbatch=4 * session.tokens_per_microbatch,
        )  # fmt: skip
        pairs = [replace(pair, reference=(values[0], values[1])) for pair, values in zip(pairs, reference, strict=True)]
        return session.train(objective, pairs, facts={"dropped_too_long": dropped}, cost=cost, generate=replies)

    def _encode(self, session: Session) -> tuple[list[_Pair], int]:
        tokenizer, limit = session.opened.loaded.tokenizer, self.max_length or session.opened.context
        pairs, dropped = [], 0
        for i, row in enumerate(session.rows):
            pair = encode_pair(tokenizer, row, where=session.where(i))
            longest = max(len(response.ids) for response in pair)
            if longest <= limit:
                pairs.append(_Pair(i, pair, shared_prefix(pair)))
            elif self.too_long == "drop":
                dropped += 1
            else:
                raise DataError(
                    f"{session.where(i)}: prompt and response have {longest} tokens, more than the {limit} allowed: shorten "
                    "it, raise max_length (up to the model's context), or set too_long=drop to leave such rows out"
                )
        return pairs, dropped


@dataclass(frozen=True, slots=True)
class _Pair:
    row: int
    group: tuple[Encoded, Encoded]  # chosen, rejected
    prefix: int  # tokens in common
    reference: tuple[float, float] = (0.0, 0.0)  # log π_ref of each


@dataclass(frozen=True, slots=True)
class _Objective:
    method: Dpo
    shape: ModelShape
    frozen_backbone: bool
    shares: bool
    virtual_flops: Callable[..., float] | None = None

    def work(self, item: _Pair, *, backward: bool = True) -> Work:
        prefix = item.prefix if self.shares else 0
        work = group_work(
            self.shape, prefix=prefix, branches=[len(e.ids) - prefix for e in item.group], backward=backward,
            logits=sum(e.trained for e in item.group), frozen_backbone=self.frozen_backbone,
        )  # fmt: skip
        if self.virtual_flops is None:
            return work
        more = sum(self.virtual_flops(len(e.ids), backward=backward) for e in item.group)
        return replace(work, flops=work.flops + more)

    def totals(self, items: Sequence[_Pair]) -> int:
        return len(items)

    def __call__(self, module: Forward, items: Sequence[_Pair], totals: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = module.batch([item.group for item in items])
        logps_N = module(batch)
        policy_B2 = sequence_sums(logps_N, batch.owner_N.to(logps_N.device), batch.sequences).view(-1, 2)
        reference_B2 = torch.tensor([item.reference for item in items], dtype=torch.double).to(policy_B2)
        rewards_B2 = implicit_reward(policy_B2, reference_B2, beta=self.method.beta)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        losses_B = MARGIN_LOSSES[self.method.loss](margin_B, self.method.label_smoothing)
        measures = {
            "margin": margin_B,
            "accuracy": (margin_B > 0).double(),
            "reward_chosen": rewards_B2[:, 0],
            "reward_rejected": rewards_B2[:, 1],
            "logp_chosen": policy_B2[:, 0],
            "logp_rejected": policy_B2[:, 1],
        }
        return losses_B.sum() / totals, {name: value.detach().sum() / totals for name, value in measures.items()}
