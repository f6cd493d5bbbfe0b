"""Scored responses for preference SFT, from an earlier evaluation's graded samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.types import Example, Made, Sampled
from ..data.asking import asking
from ..data.replies import distinct, same_text
from ..tasks.wording import answer_text
from ._replies import row

__all__ = ["ScoredResponses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponses:
    """List each question's different replies with scores: rows for `preference_sft`.

    Scores are the task's grades, or with `by=value` what the evaluation's strategy gave its candidates
    (`best_of_n:verifier=…`): the direct reward of a judge, or a reward model's; replies without one are left out.

    Replies cut by the length limit are left out: they were not finished, which is no matter of right or wrong. With
    `mixed` only questions with replies of different scores are kept; the others have nothing to choose between.
    With `reference=answer` the task's own answer, or with `worked` its worked solution, joins each question's replies as a
    right one: a reward model then learns of questions too that are never answered right, on which an online method would
    else ask it for what it has never seen. `prompt` asks the question in another way than it was sampled with.
    """

    version: ClassVar[str] = "2"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Dong et al. 2023, arXiv 2304.06767; Gulcehre et al. 2023, arXiv 2308.08998"
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "questions are answered all right or all wrong, so that scores tell nothing"
    summary: ClassVar[str] = "responses with scores for preference SFT from samples of an earlier evaluation"

    by: Literal["grade", "value"] = "grade"
    mixed: bool = False
    reference: Literal["", "answer", "worked"] = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.reference and self.by == "value":
            raise ConfigError(
                "scored_responses: reference counts as right, which by=value knows nothing of: leave it out, or set by=grade"
            )

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        ask = asking(self.prompt, prompter)
        counts = dict.fromkeys(("questions", "replies", "cut", "repeated", "without_a_reply", "not_mixed"), 0)
        if self.by == "value":
            counts["unscored"] = 0
        if self.reference:
            counts["without_a_reference"] = 0
        rows = []
        for item in sampled:
            whole = [i for i, finish in enumerate(item.finishes) if finish == "stop" and item.texts[i].strip()]
            values: Sequence[float | None] = item.scores
            if self.by == "value":
                values = item.values or [None] * len(item.texts)
                counts["unscored"] += sum(values[i] is None for i in whole)
            scored = [(item.texts[i], value) for i in whole if (value := values[i]) is not None]
            scores = dict(scored)
            texts = _different(scores) if self.by == "grade" else distinct(list(scores))
            counts["questions"] += 1
            counts["replies"] += len(item.texts)
            counts["cut"] += len(item.texts) - len(whole)
            counts["repeated"] += len(scored) - len(texts)
            if self.reference:
                right = self._right(task, item.example)
                counts["without_a_reference"] += right is None
                written = {same_text(text) for text in texts if scores[text] == 1.0}
                if right is not None and same_text(right) not in written:
                    texts, scores = [*texts, right], scores | {right: 1.0}
            if not texts:
                counts["without_a_reply"] += 1
                continue
            if self.mixed and len({scores[text] for text in texts}) == 1:
                counts["not_mixed"] += 1
                continue
            asked = [row(task, item.example, text, ask=ask, sampled_with=prompter, seed=seed) for text in texts]
            rows.append(
                {
                    "id": item.example.id,
                    "prompt": asked[0]["prompt"],
                    "responses": [one["completion"] for one in asked],
                    "scores": [scores[text] for text in texts],
                }
            )
        if not rows and counts.get("unscored"):
            raise DataError(
                "scored_responses: no reply of this evaluation has a score: sample with strategy best_of_n:verifier=… (a "
                "judge, a reward model, a rule), or take the task's grades with by=grade"
            )
        if not rows:
            raise DataError(
                f"scored_responses: no rows: of {counts['questions']} questions {counts['without_a_reply']} have no "
                f"finished reply and {counts['not_mixed']} replies of one score only; sample more replies, or take a task "
                "of middling difficulty"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})

    def _right(self, task: Task, example: Example) -> str | None:
        if self.reference == "worked":
            return example.rationale or None
        return None if example.answer is None else answer_text(task, example.answer)


def _different(scores: Mapping[str, float]) -> list[str]:
    """Return the texts without copies; what differs in case or white space alone is another text if its grade is another."""
    kept = {text for grade in set(scores.values()) for text in distinct([t for t in scores if scores[t] == grade])}
    return [text for text in scores if text in kept]
