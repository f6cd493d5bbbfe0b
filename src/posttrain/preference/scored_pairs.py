"""Preference pairs from a model's own samples, by whatever scored them: a reward model, a judge, a rule, or grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled

__all__ = ["ScoredPairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPairs:
    """Pair the best-scored response with the worst-scored one to the same question, both the model's own.

    The scores are those that the evaluation's strategy gave its candidates (`best_of_n:verifier=…`), or with `by=grade` the
    task's own. A pair needs a difference of at least `margin`, and above 0. Of several pairs of a question the second is
    second best against second worst, and so on. Responses cut by the length limit, and those without a score, are left out.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    paper: ClassVar[str] = "Liu et al. 2023, arXiv 2309.06657; Dong et al. 2024, arXiv 2405.07863"
    cost: ClassVar[str] = "the sampling and scoring of the evaluation it reads"
    fails: ClassVar[str] = "best against worst of many finds the verifier's blind spots: what it likes wrongly is chosen"
    summary: ClassVar[str] = "preference pairs from samples that a verifier or reward model scored in an earlier evaluation"

    by: Literal["value", "grade"] = "value"
    margin: Annotated[float, Field(ge=0)] = 0.0
    per_question: Annotated[int, Field(ge=1)] = 1

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        rows = []
        counts = dict.fromkeys(("questions", "responses", "cut", "unscored", "repeated", "too_close", "rows"), 0)
        for item in sampled:
            ranked = self._ranked(item, counts)
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            pairs = []
            for k in range(min(self.per_question, len(ranked) // 2)):
                (chosen, high), (rejected, low) = ranked[k], ranked[-1 - k]
                if high - low <= 0 or high - low < self.margin:
                    break
                pair = {"id": item.example.id, "prompt": messages, "chosen": chosen, "rejected": rejected}
                pairs.append({**pair, "margin": round(high - low, 4)})
            counts["too_close"] += not pairs
            rows += pairs
        if not rows:
            raise DataError(self._nothing(counts))
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})

    def _ranked(self, item: Sampled, counts: dict[str, int]) -> list[tuple[str, float]]:
        """Return a question's different whole responses with their scores, best first, equal ones in order of appearance."""
        values: Sequence[float | None] = item.scores if self.by == "grade" else item.values or [None] * len(item.texts)
        found: dict[str, float] = {}
        counts["questions"] += 1
        for text, value, finish in zip(item.texts, values, item.finishes, strict=True):
            counts["responses"] += 1
            if finish != "stop":
                counts["cut"] += 1
            elif value is None:
                counts["unscored"] += 1
            elif text in found:
                counts["repeated"] += 1
            else:
                found[text] = value
        return sorted(found.items(), key=lambda scored: -scored[1])

    def _nothing(self, counts: dict[str, int]) -> str:
        if self.by == "value" and counts["unscored"] and counts["unscored"] + counts["cut"] == counts["responses"]:
            return (
                "scored_pairs: no response of this evaluation has a score: sample with strategy best_of_n:verifier=… (a "
                "reward model, a judge, a rule), or take the task's grades with by=grade"
            )
        by = f" by {self.margin:g}" if self.margin else ""
        return (
            f"scored_pairs: no pairs: of {counts['questions']} questions {counts['too_close']} have no two whole responses "
            f"whose scores differ{by}; sample more responses per question, or lower margin"
        )
