"""Rows for online reinforcement learning: questions to answer, each with what grading the answers needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.seeds import rng
from ..core.types import Example, Made, Sampled
from ..data.asking import asking
from ..data.examples import example_row

__all__ = ["Questions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Ask each question of a split, unanswered: `{"id", "prompt", "example"}`, and "opening" if the prompt begins one.

    `example` is what verifiers grade by (`data.examples.example_of` reads it). With an earlier evaluation of the split, only
    questions that it asked and answered right in a share of samples inside [lowest, highest] are kept; each of the others is
    counted. `n` of what is left are drawn by the seed without replacement; 0 takes all, in order. Of several kinds of
    question in one training, `rewards` says which of its rewards score these.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    kind: ClassVar[str] = "data"
    paper: ClassVar[str] = "the choice by difficulty: Yu et al. 2025, arXiv 2503.14476, section 3.2, there while training"
    cost: ClassVar[str] = "nothing; with a choice by difficulty the sampling of the evaluation it reads"
    fails: ClassVar[str] = "what is of middling difficulty for the model that was sampled need not be so for the one trained"
    summary: ClassVar[str] = "questions with what grading needs, for online reinforcement learning"

    n: int = 0
    split: str = "train"
    prompt: str = ""  # default: as the evaluation asks
    lowest: float = 0.0
    highest: float = 1.0
    rewards: tuple[str, ...] = ()  # names of the only rewards that score these; none: all of them do

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError(f"questions: n = {self.n} must be a number of questions, or 0 for all")
        if not 0 <= self.lowest <= self.highest <= 1:
            raise ConfigError(
                f"questions: needs 0 <= lowest <= highest <= 1, not lowest={self.lowest:g}, highest={self.highest:g}"
            )

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        examples = list(task.examples(self.split))
        counts = {"questions": len(examples)}
        if sampled:
            examples, left_out = self._of_difficulty(task, examples, sampled)
            counts |= left_out
        elif (self.lowest, self.highest) != (0.0, 1.0):
            raise ConfigError("questions: lowest and highest choose by an earlier evaluation's samples: name it with 'from'")
        if not examples:
            raise DataError(
                f"questions: none left: of {counts['questions']} questions {counts['not_asked']} were not asked, "
                f"{counts['too_hard']} below lowest={self.lowest:g} and {counts['too_easy']} above highest={self.highest:g}"
            )
        if len(examples) < self.n:
            what = "questions left" if sampled else "examples"
            raise DataError(f"questions:n={self.n}: the {self.split} split of {task.name} has {len(examples)} {what}")
        chosen = rng(seed, "questions").sample(examples, self.n) if self.n else examples
        ask = asking(self.prompt, prompter)
        rows = [self._row(task, example, ask, seed) for example in chosen]
        return Made(rows=tuple(rows), counts={**counts, "not_drawn": len(examples) - len(rows), "rows": len(rows)})

    def _of_difficulty(
        self, task: Task, examples: Sequence[Example], sampled: Sequence[Sampled]
    ) -> tuple[list[Example], dict[str, int]]:
        """Return the examples whose share of right samples is inside the bounds, in order, and counts of the others."""
        found = {item.example.id: item for item in sampled}
        asked = [found[e.id] for e in examples if e.id in found and found[e.id].example == e]
        if not asked:
            raise DataError(
                f"questions: the evaluation named by 'from' asked no question of the {self.split} split of {task.name}: "
                "name the split that it asked, or evaluate this one"
            )
        shares = [sum(item.scores) / len(item.scores) if item.scores else None for item in asked]
        kept = [
            item.example
            for item, share in zip(asked, shares, strict=True)
            if share is not None and self.lowest <= share <= self.highest
        ]
        return kept, {
            "not_asked": len(examples) - len(asked) + shares.count(None),
            "too_hard": sum(share is not None and share < self.lowest for share in shares),
            "too_easy": sum(share is not None and share > self.highest for share in shares),
        }

    def _row(self, task: Task, example: Example, ask: Prompter, seed: int) -> dict[str, Any]:
        prompt = ask(task, example.public(), seed=seed)
        if prompt.cue is not None:
            raise ConfigError("questions: its prompt asks in two stages, and one reply is trained: take another prompt")
        row = {"id": example.id, "prompt": [message.to_dict() for message in prompt.messages]}
        row |= {"opening": prompt.begun} if prompt.begun else {}
        row |= {"rewards": list(self.rewards)} if self.rewards else {}
        return row | {"example": example_row(example)}
