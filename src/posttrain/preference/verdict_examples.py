"""Demonstrations for a labeller: verdicts on pairs whose right answer is known, in the words that it will be asked in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.seeds import rng
from ..core.types import Made, Sampled
from ..verifiers.pairwise import PROMPT, Pairwise
from ._principles import check_template, files_of, read_principles

__all__ = ["VerdictExamples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictExamples:
    """Teach a labeller by SFT: a right and a wrong response to one question, and which of the two is better.

    Every pair gives two rows, one for each order, so that a place tells nothing. The prompt is the one that `ai_feedback`
    asks with the same `principles` and `template` (without reasoning); the completion is "Verdict: 1" or "Verdict: 2". Take
    questions that the labeller will not be asked about. Cut responses and copies are left out.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Wang et al. 2023, arXiv 2306.05087 (tuned judge); Zhu et al. 2023, arXiv 2310.17631 (orders)"
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "few questions are answered both right and wrong; the labeller judges other replies than it saw"
    summary: ClassVar[str] = "rows for SFT of a labeller: verdicts on graded pairs, in both orders"

    principles: str | tuple[str, ...] = "correct"
    template: str = ""
    per_question: Annotated[int, Field(ge=1)] = 2

    def __post_init__(self) -> None:
        read_principles(self.principles, "verdict_examples")
        check_template(self.template, "verdict_examples")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that principles are read from."""
        return files_of(self.principles)

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        criteria = "\n".join(read_principles(self.principles, "verdict_examples"))
        judge = Pairwise(task=task, criteria=criteria, prompt=self.template or PROMPT)
        counts, rows = dict.fromkeys(("questions", "without_a_pair", "pairs"), 0), []
        for item in sampled:
            whole = [i for i, finish in enumerate(item.finishes) if finish == "stop" and item.texts[i].strip()]
            right = sorted({item.texts[i] for i in whole if item.scores[i] == 1.0})
            wrong = sorted({item.texts[i] for i in whole if item.scores[i] != 1.0})
            draw = rng(seed, "verdict_examples", item.example.id)
            draw.shuffle(right)
            draw.shuffle(wrong)
            pairs = ((right[(k + turn) % len(right)], text) for turn in range(len(right)) for k, text in enumerate(wrong))
            drawn = list(islice(pairs, self.per_question))
            counts["questions"] += 1
            counts["without_a_pair"] += not drawn
            counts["pairs"] += len(drawn)
            for better, worse in drawn:
                for verdict, shown in ((1, (better, worse)), (2, (worse, better))):
                    asked = judge.asked(item.example.public(), *shown)
                    prompt = [message.to_dict() for message in asked.messages]
                    rows.append({"id": item.example.id, "prompt": prompt, "completion": f"Verdict: {verdict}"})
        if not rows:
            raise DataError(
                f"verdict_examples: no rows: none of {counts['questions']} questions has a right and a wrong response; "
                "sample more responses per question, or take a task of middling difficulty"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})
