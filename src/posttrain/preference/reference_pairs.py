"""Preference pairs of reference replies against a model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled
from ..data.replies import choose, distinct, same_text

__all__ = ["ReferencePairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePairs:
    """Prefer the task's reference reply to what the model wrote itself, whatever that is worth.

    The reference is the worked solution where there is one, else the answer. Cut and empty replies, and those that are the
    reference but for white space and case, are left out; at most `per_question` different ones are drawn by the seed.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    paper: ClassVar[str] = "Chen et al. 2024, arXiv 2401.01335 (SPIN)"
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "references differ from the model's replies in form above all: the form is what is learned"
    summary: ClassVar[str] = "preference pairs of reference replies against the model's own"

    per_question: Annotated[int, Field(ge=1)] = 1

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        names = (
            "questions",
            "without_a_reference",
            "replies",
            "cut",
            "empty",
            "repeated",
            "the_reference",
            "more_than_wanted",
        )
        counts = dict.fromkeys(names, 0)
        rows = []
        for item in sampled:
            counts["questions"] += 1
            counts["replies"] += len(item.texts)
            reference = (item.example.rationale or item.example.answer or "").strip()
            if not reference:
                counts["without_a_reference"] += 1
                continue
            whole = [text for text, finish in zip(item.texts, item.finishes, strict=True) if finish == "stop"]
            written = [text for text in whole if text.strip()]
            texts = distinct([reference, *written])[1:]
            same = sum(same_text(text) == same_text(reference) for text in written)
            kept = choose(texts, self.per_question, "random", seed=seed, example=item.example.id)
            counts["cut"] += len(item.texts) - len(whole)
            counts["empty"] += len(whole) - len(written)
            counts["the_reference"] += same
            counts["repeated"] += len(written) - same - len(texts)
            counts["more_than_wanted"] += len(texts) - len(kept)
            messages = [message.to_dict() for message in prompter(task, item.example.public(), seed=seed).messages]
            rows += [{"id": item.example.id, "prompt": messages, "chosen": reference, "rejected": text} for text in kept]
        if not rows:
            raise DataError(
                f"reference_pairs: no pairs: of {counts['questions']} questions {counts['without_a_reference']} have no "
                f"reference reply; of {counts['replies']} replies {counts['cut']} were cut, {counts['the_reference']} are "
                "the reference itself: take a task with references, or sample longer replies"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})
