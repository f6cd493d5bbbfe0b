"""Supervised fine-tuning on judged responses: learn from the better ones, without a reference model or sampling.

Over the trained tokens t of the responses i of an optimiser step, w_i a constant weight (1 but for `weighted`):

    L = − Σ_i w_i Σ_t log π(y_it | y_i,<t) / Σ_i (trained tokens of i)   [ + λ Σ_pairs φ(m) / (pairs of the step) ]

`mode` says which responses take part and with what weight:

    chosen     pairs: the chosen response, like SFT; with `margin` the pair's ranking is learned too: m = s (c − r) − γ with
               c, r the mean log-probability per token of chosen and rejected; φ(m) = max(0, −m) or −log σ(m)
    best       scored: each prompt's response with the highest score
    filtered   scored: responses with a score of at least `threshold`
    weighted   scored: all of them, w ∝ exp(score / beta), mean 1

Metrics: `trained_tokens`; with a margin also `cross_entropy` (the first term), `ranking` (mean φ), `margin` (mean c − r) and
`accuracy` (share of pairs with c > r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.types import Checkpoint, ModelShape
from ..data.masks import Encoded, encode_completion
from ..engines.local.replies import replies
from ..losses.judged import RANKING_LOSSES, ranking_margin
from ..losses.reduce import sequence_sums
from ..models.forward import Forward
from ..models.sharing import share_opening, shared_prefix
from ..training.judged import Judged, read_judged
from ..training.rows import encode_pair, fits, refuse_soft_labels, split_response
from ..training.session import Session, group_work
from ..training.settings import TrainerSettings
from ..training.step import Work
from ._judged import best, filtered, need_choice, weights

__all__ = ["PreferenceSft"]

_READ_BY = {  # which modes read a setting; the margin's own need a margin too
    "margin": ("chosen",),
    "margin_weight": ("chosen",),
    "margin_scale": ("chosen",),
    "margin_gap": ("chosen",),
    "threshold": ("filtered",),
    "beta": ("weighted",),
    "over": ("weighted",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSft(TrainerSettings):
    """Fine-tuning on judged responses: chosen ones, the best, those above a threshold, or all weighted by their scores.

    Rows are `{"prompt", "chosen", "rejected"}` with mode=chosen (`rejected` may be missing without a margin), else
    `{"prompt", "responses": [texts], "scores": [numbers]}` or `{"prompt", "completion", "score"}`; rows with the same prompt
    count as one prompt. Lengths are limited as in `sft`, of a pair with a margin the longer response's.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    scored: ClassVar[bool] = True  # rows keep their scores on the way here
    paper: ClassVar[str] = (
        "Peters and Schaal 2007 (weighted); Dong et al. 2023, arXiv 2304.06767 (best); "
        "Gulcehre et al. 2023, arXiv 2308.08998 (filtered); Yuan et al. 2023, arXiv 2304.05302 (hinge); "
        "Meng et al. 2024, arXiv 2405.14734 (sigmoid)"
    )
    cost: ClassVar[str] = "3 forward passes per token of what is trained (a margin: both responses) and epoch, once"
    fails: ClassVar[str] = "scores that reward length or form: that is learned; beta too small: a few responses, by heart"

    mode: Literal["chosen", "best", "filtered", "weighted"] = "chosen"
    margin: Literal["off", "hinge", "sigmoid"] = "off"
    margin_weight: float = 1.0  # of the ranking term against the likelihood
    margin_scale: float = 1.0  # of the difference of mean log-probabilities
    margin_gap: float = 0.0  # how much it must exceed
    threshold: float = 1.0  # of filtered
    beta: float = 1.0  # of weighted, in units of the score
    over: Literal["prompt", "data"] = "prompt"  # what the weights are normalised over

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        session = Session.open(self, start, data, out, seed=seed)
        if session.done is not None:
            return session.done
        items, facts = self._pairs(session) if self.mode == "chosen" else self._scored(session)
        limit = self.max_length or session.opened.context
        kept = [i for i in items if fits(i.longest, limit, too_long=self.too_long, where=session.where(i.row))]
        objective = _Objective(
            self, session.opened.loaded.shape, session.frozen_backbone, session.module.packs, session.virtual_flops
        )
        facts["dropped_too_long"] = len(items) - len(kept)
        return session.train(objective, kept, facts=facts, generate=replies)

    def _check_settings(self) -> None:
        for field in fields(self):
            read = field.name not in _READ_BY or self.mode in _READ_BY[field.name]
            if field.name.startswith("margin_") and self.margin == "off":
                read = False
            if not read and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"preference_sft: {field.name} = {getattr(self, field.name)} has no effect with mode={self.mode}, "
                    f"margin={self.margin}: leave it out"
                )
        if not (self.margin_weight > 0 and self.margin_scale > 0 and self.margin_gap >= 0 and self.beta > 0):
            raise ConfigError(
                f"preference_sft: margin_weight = {self.margin_weight}, margin_scale = {self.margin_scale} and beta = "
                f"{self.beta} must be positive, margin_gap = {self.margin_gap} not negative"
            )

    def _pairs(self, session: Session) -> tuple[list[_Item], dict[str, Any]]:
        tokenizer, items = session.opened.loaded.tokenizer, []
        for i, row in enumerate(session.rows):
            refuse_soft_labels(row, where=session.where(i), why="preference_sft learns from what was chosen outright")
            if self.margin != "off" or "rejected" in row:
                chosen, rejected = encode_pair(tokenizer, row, where=session.where(i))
                group = (chosen,) if self.margin == "off" else (chosen, rejected)
            else:
                group = (_chosen(tokenizer, row, where=session.where(i)),)
            items.append(_Item(i, group))
        return items, {}

    def _scored(self, session: Session) -> tuple[list[_Item], dict[str, Any]]:
        found = read_judged(session.rows, where=session.where)
        trained = [judged for judged in found if judged.row not in session.held]
        if not trained:
            raise DataError("there is nothing to train on: no row is left")
        if self.mode == "best" or (self.mode == "weighted" and self.over == "prompt"):
            need_choice(trained, self.mode)
        # each part by itself: held-out scores decide nothing about training
        held = [judged for judged in found if judged.row in session.held]
        kept = self._selected(trained, "") + self._selected(held, " of the held-out rows")
        tokenizer, items = session.opened.loaded.tokenizer, []
        for judged, weight in kept:
            try:
                items.append(_Item(judged.row, (encode_completion(tokenizer, judged.messages, judged.response),), weight))
            except DataError as error:
                raise DataError(f"{session.where(judged.row)}: {error}") from None
        prompts = len({judged.prompt for judged in found})
        return items, {"responses": len(found), "prompts": prompts, "not_selected": len(found) - len(kept)}

    def _selected(self, found: Sequence[Judged], of: str) -> list[tuple[Judged, float]]:
        """Return the responses that take part, with their weights."""
        if not found:
            return []
        if self.mode == "weighted":
            return list(zip(found, weights(found, beta=self.beta, over=self.over), strict=True))
        return [(judged, 1.0) for judged in (best(found) if self.mode == "best" else filtered(found, self.threshold, of))]


def _chosen(tokenizer: Any, row: Mapping[str, Any], *, where: str) -> Encoded:
    if "chosen" not in row:
        raise DataError(f"{where}: no 'chosen'; expected 'prompt', 'chosen' and 'rejected', found {', '.join(sorted(row))}")
    try:
        return encode_completion(tokenizer, *split_response(row, "chosen"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Item:
    """One response, or (chosen, rejected)."""

    row: int
    group: tuple[Encoded, ...]
    weight: float = 1.0

    @property
    def longest(self) -> int:
        return max(len(encoded.ids) for encoded in self.group)


@dataclass(frozen=True, slots=True)
class _Totals:
    tokens: int  # trained, of the responses whose likelihood is raised
    pairs: int


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: PreferenceSft
    shape: ModelShape
    frozen_backbone: bool
    shares: bool
    virtual_flops: Callable[..., float]

    def work(self, item: _Item, *, backward: bool = True) -> Work:
        prefix = shared_prefix(item.group) if self.shares else 0
        work = group_work(
            self.shape, prefix=prefix, branches=[len(e.ids) - prefix for e in item.group], backward=backward,
            logits=sum(e.trained for e in item.group), frozen_backbone=self.frozen_backbone,
        )  # fmt: skip
        more = sum(self.virtual_flops(len(e.ids), backward=backward) for e in item.group)
        return replace(work, flops=work.flops + more)

    def totals(self, items: Sequence[_Item]) -> _Totals:
        return _Totals(tokens=sum(item.group[0].trained for item in items), pairs=len(items))

    def __call__(self, module: Forward, items: Sequence[_Item], totals: _Totals) -> tuple[Tensor, dict[str, Any]]:
        if self.method.margin != "off":
            return self._ranked(module, items, totals)
        groups = share_opening([item.group[0] for item in items], self.shape)
        batch = module.batch(groups)
        weight_S = torch.tensor([item.weight for item in items], dtype=torch.double)  # groups keep the order of the items
        loss, _ = module(batch, -weight_S[batch.owner_N] / totals.tokens)
        return loss, {"trained_tokens": len(batch.targets_N)}

    def _ranked(self, module: Forward, items: Sequence[_Item], totals: _Totals) -> tuple[Tensor, dict[str, Any]]:
        method = self.method
        batch = module.batch([item.group for item in items])
        logps_N = module(batch)
        sums_B2 = sequence_sums(logps_N, batch.owner_N.to(logps_N.device), batch.sequences).view(-1, 2)
        tokens_B2 = torch.tensor([[e.trained for e in item.group] for item in items]).to(sums_B2)
        means_B2 = sums_B2 / tokens_B2
        margin_B = ranking_margin(means_B2[:, 0], means_B2[:, 1], scale=method.margin_scale, gap=method.margin_gap)
        entropy = -sums_B2[:, 0].sum() / totals.tokens
        ranking = RANKING_LOSSES[method.margin](margin_B, 0.0).sum() / totals.pairs
        difference_B = (means_B2[:, 0] - means_B2[:, 1]).detach()
        measures = {
            "cross_entropy": entropy.detach(),
            "ranking": ranking.detach(),
            "margin": difference_B.sum() / totals.pairs,
            "accuracy": (difference_B > 0).sum() / totals.pairs,
            "trained_tokens": sum(item.group[0].trained for item in items),
        }
        return entropy + method.margin_weight * ranking, measures
