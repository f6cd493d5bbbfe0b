"""A process reward model: the probability that each step of a reasoning is right, learned from judged steps.

Over the judged steps k of an optimiser step, y_k = 1 for a right one, 0 for a wrong one, or the share of rollouts behind
it that came out right (Math-Shepherd's soft estimate):

    L = − mean_k [ y_k log p_k + (1 − y_k) log(1 − p_k) ]        p_k = softmax(z_k)[right]

z_k are the head's two outputs at the last token of the tag behind step k: one forward pass, whatever the number of steps.

Metrics: `steps` (judged), `step_accuracy` (share of them on the judged side of ½), `right` (their share judged right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.types import Checkpoint, Message, ModelShape
from ..data.checks import refuse_special_text
from ..data.formats import normalise
from ..data.masks import Encoded
from ..data.shapes import Steps
from ..data.steps import lay_out_steps
from ..losses.reward import step_cross_entropy
from ..models.scoring import ScoreForward
from ..stats.first_wrong import step_report
from ..training.heldout import question_of
from ..training.rows import fits
from ..training.scoring import scoring_opener
from ..training.session import Session, group_work
from ..training.settings import TrainerSettings
from ..training.step import Learner, Work
from ._kept import numbers_of

__all__ = ["ProcessReward"]

LABELS = ("wrong", "right")  # the verifier takes the second one for the good one


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessReward(TrainerSettings):
    """A head that judges each step of a reasoning, from judged steps; read by the verifier of the same name (style=token).

    Rows are `{"prompt" or "question", "steps": [texts]}` with `mistake_index` (from 0; null: all steps are right) or
    `labels` (for each step true, false, a number from 0 to 1, or null for a step that nobody judged).
    """

    version: ClassVar[str] = "1"
    scored: ClassVar[bool] = True  # rows keep what they are on the way here
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Lightman et al. 2023, arXiv 2305.20050 (judged steps); Wang et al. 2023, arXiv 2312.08935 (from rollouts)"
    )
    cost: ClassVar[str] = "3 forward passes per token of the solutions and epoch, once; one per solution to be scored"
    fails: ClassVar[str] = "steps cut in another way than in training; another policy's kind of mistakes"

    after: Literal["ignore", "wrong"] = "ignore"  # unjudged steps behind the first wrong one
    tag: str = "\\n"  # what follows each step; a written \n is a line break
    chat: bool = True  # question in the chat template; false: as plain text
    lr: float = 1e-5

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        opener = scoring_opener("token", LABELS)
        session = Session.open(self, start, data, out, seed=seed, opener=opener, forward=ScoreForward)
        if session.done is not None:
            return session.done
        items = [self._encoded(session, i) for i in range(len(session.rows))]
        limit = self.max_length or session.opened.context
        kept = [i for i in items if fits(len(i.encoded.ids), limit, too_long=self.too_long, where=session.where(i.row))]
        objective = _Objective(session.opened.loaded.shape, session.frozen_backbone)
        trained = [item for item in kept if item.row not in session.held]
        facts = {
            "dropped_too_long": len(items) - len(kept),
            "judged_steps": sum(item.judged for item in trained),
            "labels": LABELS,
        }
        return session.train(objective, kept, facts=facts, judge=objective.judge)

    def _encoded(self, session: Session, row: int) -> _Item:
        tokenizer, where = session.opened.loaded.tokenizer, session.where(row)
        solution = normalise(session.rows[row], where)
        if not isinstance(solution, Steps):
            raise DataError(
                f"{where}: is a {type(solution).__name__.lower()}, but 'steps' with 'mistake_index' or 'labels' are needed"
            )
        steps = [step.strip() for step in solution.steps]  # as the verifier cuts them
        try:
            refuse_special_text(tokenizer, [*solution.prompt, *(Message(role="assistant", content=step) for step in steps)])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        ids, read = lay_out_steps(tokenizer, solution.prompt, steps, tag=self.tag.replace("\\n", "\n"), chat=self.chat)
        labels: list[float | None] = []
        wrong = False
        for label in solution.labels:
            wrong = wrong or (label is not None and label < 0.5)
            labels.append(0.0 if label is None and wrong and self.after == "wrong" else label)
        if all(label is None for label in labels):
            raise DataError(f"{where}: no step is judged; remove the row")
        marked = set(read)
        return _Item(
            row, question_of(session.rows[row]), Encoded(ids, [t in marked for t in range(len(ids))]), tuple(labels)
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """One solution."""

    row: int
    question: str
    encoded: Encoded
    labels: tuple[float | None, ...]

    @property
    def judged(self) -> int:
        return sum(label is not None for label in self.labels)


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    shape: ModelShape
    frozen_backbone: bool
    noted: dict[int, list[float]] = field(default_factory=dict)  # probabilities of held-out rows, as last evaluated

    def work(self, item: _Item, *, backward: bool = True) -> Work:
        return group_work(
            self.shape, prefix=0, branches=[len(item.encoded.ids)], logits=len(item.labels), backward=backward,
            frozen_backbone=self.frozen_backbone,
        )  # fmt: skip

    def totals(self, items: Sequence[_Item]) -> int:
        return sum(item.judged for item in items)

    def __call__(self, module: ScoreForward, items: Sequence[_Item], totals: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits_S2 = module(module.batch([[item.encoded] for item in items]))
        if not module.training:
            chances_S = logits_S2.detach().softmax(-1)[:, 1]
            for item, values in zip(items, torch.split(chances_S, [len(i.labels) for i in items]), strict=True):
                self.noted[item.row] = values.tolist()
        labels = [label for item in items for label in item.labels]
        judged = [k for k, label in enumerate(labels) if label is not None]
        right_S = logits_S2.new_tensor([label for label in labels if label is not None])
        logits_S2 = logits_S2[judged]
        agreed_S = (logits_S2[:, 1] >= logits_S2[:, 0]) == (right_S >= 0.5)
        measures = {
            "steps": torch.tensor(float(len(judged))),
            "step_accuracy": agreed_S.double().sum() / totals,
            "right": (right_S >= 0.5).double().sum() / totals,
        }
        return step_cross_entropy(logits_S2, right_S).sum() / totals, measures

    def judge(self, learner: Learner, items: Sequence[_Item]) -> dict[str, Any]:
        """Return what the held-out solutions say of the trained model."""
        chances = numbers_of(learner, items, self.noted)
        return step_report(
            [chances[item.row] for item in items],
            [item.labels for item in items],
            [item.question for item in items],
        )
