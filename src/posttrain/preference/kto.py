"""KTO (Ethayarajh et al. 2024, 2402.01306): preferences from single responses, each desirable or not; no pairs are needed.

With h(x, y) = log π(y|x) − log π_ref(y|x), summed over the response's tokens, averaged over the optimiser step's responses:

    L = λ_D σ(−β (h − z₀))  for a desirable response,   L = λ_U σ(β (h − z₀))  for an undesirable one       (eq. 8)
    z₀ = max(0, mean of h(x_i, y_j) over the step)       y_j a response to another prompt of the step

The baseline z₀ estimates KL(π ‖ π_ref). It is taken over the whole step, all micro-batches and processes, before any
gradient, without dropout, and no gradient flows through it: so it does not depend on how the step is cut. The reference is
the start checkpoint; its log-probabilities, of the mismatched responses too, are computed once and kept in `out/reference`.

Metrics: `baseline` (z₀), `accuracy` (share of responses on their side of it), `desirable` (their share), and for both kinds
`reward_…` (β h), `logp_…` and `change_…` (h), means over the responses of that kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.types import Checkpoint, Message, ModelShape
from ..data.masks import Encoded, encode_completion
from ..engines.local.replies import replies
from ..losses.reduce import sequence_sums
from ..losses.unpaired import kto
from ..models.forward import Forward
from ..models.sharing import share_opening
from ..training.rows import fits, refuse_soft_labels, split_response
from ..training.schedule import Schedule
from ..training.session import Session
from ..training.settings import TrainerSettings
from ..training.step import Work
from ._mismatched import partners, steps_of
from ._reference import both_fell, start_logps, work_of

__all__ = ["Kto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kto(TrainerSettings):
    """KTO: learn from responses that are each desirable or not, without pairs.

    Rows are `{"prompt": text or messages, "completion": text, "label": true or false}`, or pairs as `dpo` takes them, each
    of which gives a desirable and an undesirable response. Lengths are limited as in `dpo`; `batch_size` counts responses.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    scored: ClassVar[bool] = True  # rows keep their labels on the way here
    paper: ClassVar[str] = "Ethayarajh et al. 2024, arXiv 2402.01306"
    cost: ClassVar[str] = "6 forward passes per token, once (1 reference and 1 baseline among them); nothing per query"
    fails: ClassVar[str] = "small batches: a noisy baseline; far more responses of one kind: weights must make up for it"

    beta: float = 0.1
    desirable_weight: float = 1.0  # λ_D
    undesirable_weight: float = 1.0  # λ_U
    lr: float = 1e-6
    schedule: Schedule = "linear"
    warmup: float = 0.1

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"kto: {name} = {getattr(self, name)} must be positive")
        if self.batch_size < 2:
            raise ConfigError("kto: batch_size = 1 leaves no response to another prompt for the baseline: set 2 or more")
        session = Session.open(self, start, data, out, seed=seed)
        if session.done is not None:
            return session.done
        read = [item for i, row in enumerate(session.rows) for item in _responses(session, i, row)]
        limit = self.max_length or session.opened.context
        kept = [r for r in read if fits(len(r.own.ids), limit, too_long=self.too_long, where=session.where(r.row))]
        kept = [replace(response, at=at) for at, response in enumerate(kept)]
        mismatched, cut = self._mismatched(session, kept, limit)
        own, put = self._references(session, kept, mismatched)
        items = [replace(response, reference=value) for response, value in zip(kept, own[0], strict=True)]
        objective = _Objective(
            self, session.opened.loaded.shape, session.frozen_backbone, session.virtual_flops, mismatched, put
        )
        facts = {
            "responses": len(kept),
            "desirable": sum(response.desirable for response in kept),
            "dropped_too_long": len(read) - len(kept),
            "cut_for_the_baseline": cut,
        }
        closing = partial(both_fell, sides=("desirable", "undesirable"))
        return session.train(objective, items, facts=facts, cost=own[1], generate=replies, closing=closing)

    def _mismatched(self, session: Session, kept: Sequence[_Response], limit: int) -> tuple[dict[_Pair, Encoded], int]:
        """Return prompt i with response j for all that meet in a step; one that gets too long is cut, and counted."""
        trained = [response for response in kept if response.row not in session.held]
        steps = steps_of(len(trained), batch_size=self.batch_size, epochs=self.epochs, seed=session.seed)
        together = [[trained[i] for i in step] for step in steps] + [[r for r in kept if r.row in session.held]]
        found: dict[_Pair, Encoded] = {}
        for pair in (pair for step in together for pair in _partners(step).items()):
            prompt, response = kept[pair[0]].messages, kept[pair[1]].text
            found[pair] = encode_completion(session.opened.loaded.tokenizer, prompt, response)
        long = [pair for pair, encoded in found.items() if len(encoded.ids) > limit]
        for pair in long:
            found[pair] = replace(found[pair], ids=found[pair].ids[:limit], mask=found[pair].mask[:limit])
        return found, len(long)

    def _references(
        self, session: Session, kept: Sequence[_Response], mismatched: Mapping[_Pair, Encoded]
    ) -> tuple[tuple[list[float], Any], dict[_Pair, float]]:
        """Return log π_ref of each response (with what all cost), and of each mismatched one; prompts are read once."""
        pairs: dict[int, list[_Pair]] = {response.at: [] for response in kept}
        for pair in mismatched:
            pairs[pair[0]].append(pair)
        groups = [(response.own, *(mismatched[pair] for pair in pairs[response.at])) for response in kept]
        values, cost = start_logps(session, groups)
        put = {
            pair: value
            for r, found in zip(kept, values, strict=True)
            for pair, value in zip(pairs[r.at], found[1:], strict=True)
        }
        return ([found[0] for found in values], cost), put


_Pair = tuple[int, int]  # a prompt's response, and the one that is put in its place


@dataclass(frozen=True, slots=True)
class _Response:
    row: int
    messages: list[Message]  # prompt
    text: str
    desirable: bool
    own: Encoded
    at: int = 0  # among all responses
    reference: float = 0.0  # log π_ref

    @property
    def question(self) -> str:
        return json.dumps([(message.role, message.content) for message in self.messages])


def _responses(session: Session, i: int, row: Mapping[str, Any]) -> list[_Response]:
    """Return the labelled response of a row, or both of a pair."""
    where = session.where(i)
    sides = {"chosen": True, "rejected": False} if {"chosen", "rejected"} <= row.keys() else {"completion": row.get("label")}
    if "completion" in sides and not (isinstance(sides["completion"], bool) and {"prompt", "completion"} <= row.keys()):
        raise DataError(
            f"{where}: expected 'prompt', 'completion' and a 'label' that is true or false, or 'prompt', 'chosen' and "
            f"'rejected'; found {', '.join(sorted(row))}"
        )
    refuse_soft_labels(row, where=where, why="kto takes only desirable and undesirable responses")
    found = []
    try:
        for name, label in sides.items():
            messages, text = split_response(row, name)
            own = encode_completion(session.opened.loaded.tokenizer, messages, text)
            found.append(_Response(i, messages, text, bool(label), own))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return found


def _partners(step: Sequence[_Response]) -> dict[int, int]:
    """Return which response of the step is put to whose prompt, by their place among all."""
    return {step[one].at: step[other].at for one, other in partners([response.question for response in step]).items()}


@dataclass(frozen=True, slots=True)
class _Totals:
    responses: int
    desirable: int
    partner: Mapping[int, int]
    baseline: float | None = None  # None: still to be measured


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: Kto
    shape: ModelShape
    frozen_backbone: bool
    virtual_flops: Callable[..., float]
    mismatched: Mapping[_Pair, Encoded]
    reference: Mapping[_Pair, float]  # log π_ref of the mismatched

    def work(self, item: _Response, *, backward: bool = True) -> Work:
        """Charge the response, and one forward pass more: over a step the mismatched have the same tokens in all."""
        own, again = (
            work_of(
                (item.own,), shape=self.shape, prefix=0, frozen_backbone=self.frozen_backbone, backward=trained,
                virtual_flops=self.virtual_flops,
            )
            for trained in (backward, False)
        )  # fmt: skip
        return Work(tokens=own.tokens, flops=own.flops + again.flops, read=again.tokens)

    def totals(self, items: Sequence[_Response]) -> _Totals:
        return _Totals(len(items), sum(item.desirable for item in items), _partners(items))

    def complete(self, totals: _Totals, sums: Mapping[str, Tensor]) -> _Totals:
        return replace(totals, baseline=max(0.0, float(sums["log_ratio"]) / max(1, len(totals.partner))))

    def __call__(self, module: Forward, items: Sequence[_Response], totals: _Totals) -> tuple[Tensor, dict[str, Any]]:
        if totals.baseline is None:
            return torch.zeros(()), {"log_ratio": self._mismatched_log_ratio(module, items, totals)}
        policy_N = self._sums(module, [item.own for item in items])
        change_N = policy_N - torch.tensor([item.reference for item in items], dtype=torch.double).to(policy_N)
        desirable_N = torch.tensor([item.desirable for item in items], device=policy_N.device)
        losses_N = kto(
            change_N, desirable_N, totals.baseline, beta=self.method.beta, desirable_weight=self.method.desirable_weight,
            undesirable_weight=self.method.undesirable_weight,
        )  # fmt: skip
        right_N = (change_N > totals.baseline) == desirable_N
        measures = {
            "baseline": totals.baseline * len(items) / totals.responses,
            "accuracy": right_N.sum() / totals.responses,
            "desirable": desirable_N.sum() / totals.responses,
        }
        for kind, which_N, count in (
            ("desirable", desirable_N, totals.desirable),
            ("undesirable", ~desirable_N, totals.responses - totals.desirable),
        ):
            if count:
                measures |= {
                    f"reward_{kind}": self.method.beta * change_N[which_N].detach().sum() / count,
                    f"logp_{kind}": policy_N[which_N].detach().sum() / count,
                    f"change_{kind}": change_N[which_N].detach().sum() / count,
                }
        return losses_N.sum() / totals.responses, measures

    def _mismatched_log_ratio(self, module: Forward, items: Sequence[_Response], totals: _Totals) -> Tensor:
        """Return Σ h(x_i, y_j) over these prompts."""
        pairs = [(item.at, totals.partner[item.at]) for item in items if item.at in totals.partner]
        if not pairs:
            return torch.zeros(())
        policy_N = self._sums(module, [self.mismatched[pair] for pair in pairs])
        reference_N = torch.tensor([self.reference[pair] for pair in pairs], dtype=torch.double)
        return (policy_N.double().cpu() - reference_N).sum()

    def _sums(self, module: Forward, sequences: Sequence[Encoded]) -> Tensor:
        batch = module.batch(share_opening(sequences, self.shape))  # groups keep the order
        logps_N = module(batch)
        return sequence_sums(logps_N, batch.owner_N.to(logps_N.device), batch.sequences)
