"""A reward model: one number for a whole reply, learned from which of several replies was preferred.

Over the prompts of an optimiser step, each with the comparisons C among its replies (K(K − 1)/2 of a ranking without ties):

    L = mean over prompts of  (1 / |C|) Σ_C [ −log σ(r_better − r_worse − m) + λ (r_better + r_worse)² ]      loss=pairs
        (1 / choices) Σ_i [ log Σ_{j: j = i or ranked worse} exp r_j − r_i ] + the same λ term                loss=list

r is the head's output at the last token of the conversation, found by its length. All replies to a prompt are one item: they
share the prompt's computation, and each reply is computed once, however many comparisons it is in.

Metrics: `accuracy` (share of comparisons ranked as judged, or as a soft label finds likelier, a tie counting half), `margin`
(mean r_better − r_worse), `reward` (mean), `centring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.types import Checkpoint, Message, ModelShape
from ..data.chat import render_ids
from ..data.checks import refuse_special_text
from ..data.formats import normalise
from ..data.masks import Encoded
from ..data.preferences import answers_of, comparisons, ranking_of
from ..data.shapes import Preference, Ranking, Scored
from ..losses.preference import agreed
from ..losses.reward import bradley_terry, centring, plackett_luce
from ..models.scoring import ScoreForward
from ..models.sharing import shared_prefix
from ..stats.rewards import JudgedReplies, reward_report
from ..training.rows import fits, refuse_soft_labels
from ..training.schedule import Schedule
from ..training.scoring import scoring_opener
from ..training.session import Session, group_work
from ..training.settings import TrainerSettings
from ..training.step import Learner, Work
from ._kept import numbers_of

__all__ = ["RewardModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel(TrainerSettings):
    """A scalar head on a language model, from pairs, rankings or scores; read by the verifier of the same name.

    Rows are `{"prompt", "chosen", "rejected"}` (with a `margin`, if there is one), `{"prompt", "responses", "ranks"}` (1 is
    the best, equal ranks are ties) or `{"prompt", "responses", "scores"}`; a text in `subset` names a part reported apart. A
    pair's `preference` in [0, 1] is a soft label, to which the loss is the cross-entropy (loss=pairs, margin=0).
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    scored: ClassVar[bool] = True  # rows keep scores, margins and subsets on the way here
    paper: ClassVar[str] = (
        "Stiennon et al. 2020, arXiv 2009.01325 (pairs); Ouyang et al. 2022, arXiv 2203.02155 (rankings); "
        "Touvron et al. 2023, arXiv 2307.09288 (margin); Eisenstein et al. 2023, arXiv 2312.09244 (centring)"
    )
    cost: ClassVar[str] = "3 forward passes per token of all replies and epoch, once; one per reply to be scored"
    fails: ClassVar[str] = "length or form that gives the chosen side away is learned; optimised against, its gaps are found"

    loss: Literal["pairs", "list"] = "pairs"
    margin: float = 0.0  # times the row's margin (or difference of scores), to be exceeded; 0: not read
    centre: float = 0.0  # λ
    lr: float = 1e-5
    schedule: Schedule = "linear"

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        if self.margin < 0 or self.centre < 0:
            raise ConfigError(f"reward_model: margin = {self.margin} and centre = {self.centre} must not be negative")
        if self.loss == "list" and self.margin:
            raise ConfigError(f"reward_model: margin = {self.margin} belongs to loss=pairs: leave it out with loss=list")
        opener = scoring_opener("sequence", ["reward"])
        session = Session.open(self, start, data, out, seed=seed, opener=opener, forward=ScoreForward)
        if session.done is not None:
            return session.done
        items = self._encode(session)
        limit = self.max_length or session.opened.context
        kept = [i for i in items if fits(i.longest, limit, too_long=self.too_long, where=session.where(i.row))]
        objective = _Objective(self, session.opened.loaded.shape, session.frozen_backbone, session.module.packs)
        facts = {
            "dropped_too_long": len(items) - len(kept),
            "comparisons": sum(len(item.comparisons) for item in kept if item.row not in session.held),
        }
        return session.train(objective, kept, facts=facts, judge=objective.judge)

    def _encode(self, session: Session) -> list[_Item]:
        tokenizer, items = session.opened.loaded.tokenizer, []
        for i, row in enumerate(session.rows):
            where = session.where(i)
            judged = normalise(row, where)
            if not isinstance(judged, Preference | Ranking | Scored):
                raise DataError(
                    f"{where}: is a {type(judged).__name__.lower()}, but a pair, a ranking or scored responses are needed; "
                    "`posttrain data convert --to pairs` makes pairs of thumbs"
                )
            label = None if not isinstance(judged, Preference) else judged.preference
            if label is not None and (self.loss != "pairs" or self.margin):
                what = f"loss={self.loss}" if self.loss != "pairs" else f"a margin of {self.margin:g}"
                refuse_soft_labels(row, where=where, why=f"reward_model with {what} takes only hard ones")
            soft = None if label in (None, 1.0) else label
            found = comparisons(judged) if soft is None else [(0, 1, 0.0)]
            if not found:
                raise DataError(f"{where}: all replies are tied or equal, so nothing is preferred; remove the row")
            try:
                group = tuple(_encoded(tokenizer, judged.prompt, text) for text in answers_of(judged))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            common = shared_prefix(group)
            items.append(
                _Item(
                    row=i,
                    group=group,
                    comparisons=tuple((better, worse) for better, worse, _ in found),
                    gaps=tuple(self.margin * gap for _, _, gap in found),
                    preference=soft,
                    ranks=ranking_of(judged).ranks,
                    lengths=tuple(len(encoded.ids) - common for encoded in group),
                    subset=row.get("subset"),
                )
            )
        return items


def _encoded(tokenizer: Any, prompt: Sequence[Message], text: str) -> Encoded:
    """Return the conversation's ids; what is read is the last of them."""
    turns = [*prompt, Message(role="assistant", content=text)]
    refuse_special_text(tokenizer, turns)
    ids = render_ids(tokenizer, turns)
    return Encoded(ids, [t == len(ids) - 1 for t in range(len(ids))])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """The replies to one prompt with the comparisons among them."""

    row: int
    group: tuple[Encoded, ...]
    comparisons: tuple[tuple[int, int], ...]  # (better, worse)
    gaps: tuple[float, ...]
    ranks: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens behind what all replies have in common
    subset: str | None = None
    preference: float | None = None  # of a pair with a soft label: P(the first is the better one)

    @property
    def decided(self) -> tuple[tuple[int, int], ...]:
        """The comparisons as the likelier label has them, without ties: what a share of right ones is of."""
        if self.preference is None or self.preference > 0.5:
            return self.comparisons
        return () if self.preference == 0.5 else tuple((worse, better) for better, worse in self.comparisons)

    @property
    def longest(self) -> int:
        return max(len(encoded.ids) for encoded in self.group)


@dataclass(frozen=True, slots=True)
class _Totals:
    prompts: int
    comparisons: int
    replies: int


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: RewardModel
    shape: ModelShape
    frozen_backbone: bool
    shares: bool
    noted: dict[int, list[float]] = field(default_factory=dict)  # rewards of held-out rows, as last evaluated

    def work(self, item: _Item, *, backward: bool = True) -> Work:
        prefix = shared_prefix(item.group) if self.shares else 0
        return group_work(
            self.shape, prefix=prefix, branches=[len(e.ids) - prefix for e in item.group], backward=backward,
            logits=len(item.group), frozen_backbone=self.frozen_backbone,
        )  # fmt: skip

    def totals(self, items: Sequence[_Item]) -> _Totals:
        return _Totals(len(items), sum(len(i.comparisons) for i in items), sum(len(i.group) for i in items))

    def __call__(self, module: ScoreForward, items: Sequence[_Item], totals: _Totals) -> tuple[Tensor, dict[str, Tensor]]:
        rewards_N = module(module.batch([item.group for item in items]))[:, 0]
        if not module.training:
            self._note(items, rewards_N)
        better_C, worse_C, gap_C, weight_C, preference_C = _flat(items, rewards_N)
        centred_C = centring(rewards_N, better_C, worse_C)
        if self.method.loss == "pairs":
            soft = preference_C if any(item.preference is not None for item in items) else None
            loss = (bradley_terry(rewards_N, better_C, worse_C, gap_C, soft) * weight_C).sum()
        else:
            parts = torch.split(rewards_N, [len(item.group) for item in items])
            ranks = [torch.tensor(item.ranks, device=rewards_N.device) for item in items]
            loss = torch.stack([plackett_luce(r, k).mean() for r, k in zip(parts, ranks, strict=True)]).sum()
        loss = loss + self.method.centre * (centred_C * weight_C).sum()
        difference_C = (rewards_N[better_C] - rewards_N[worse_C]).detach()
        measures = {
            "accuracy": agreed(difference_C, preference_C).sum() / totals.comparisons,
            "margin": difference_C.sum() / totals.comparisons,
            "reward": rewards_N.detach().sum() / totals.replies,
            "centring": centred_C.detach().sum() / totals.comparisons,
        }
        return loss / totals.prompts, measures

    def _note(self, items: Sequence[_Item], rewards_N: Tensor) -> None:
        for item, values in zip(items, torch.split(rewards_N, [len(item.group) for item in items]), strict=True):
            self.noted[item.row] = values.tolist()

    def judge(self, learner: Learner, items: Sequence[_Item]) -> dict[str, Any]:
        """Return what the held-out judgements say of the trained model."""
        rewards = numbers_of(learner, items, self.noted)
        judged = [
            JudgedReplies(
                rewards=tuple(rewards[item.row]), lengths=item.lengths, comparisons=item.decided, subset=item.subset
            )
            for item in items
            if item.decided
        ]
        return reward_report(judged) if judged else {"comparisons": 0}


def _flat(items: Sequence[_Item], like_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return all comparisons as indices into the micro-batch's replies, gaps, 1 / |C| of their prompts, and soft labels."""
    better: list[int] = []
    worse: list[int] = []
    gaps: list[float] = []
    weights: list[float] = []
    labels: list[float] = []
    at = 0
    for item in items:
        better += [at + b for b, _ in item.comparisons]
        worse += [at + w for _, w in item.comparisons]
        gaps += item.gaps
        weights += [1 / len(item.comparisons)] * len(item.comparisons)
        labels += [1.0 if item.preference is None else item.preference] * len(item.comparisons)
        at += len(item.group)
    index = [torch.tensor(values, device=like_N.device) for values in (better, worse)]
    return index[0], index[1], like_N.new_tensor(gaps), like_N.new_tensor(weights), like_N.new_tensor(labels)
