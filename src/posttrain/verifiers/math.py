"""Compares with the gold answer as mathematics, whatever way the two are written: an oracle."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.errors import DataError
from ..core.protocols import Task
from ..core.types import Example, Score
from ..tasks.equivalence import compare_mathematics

__all__ = ["Math"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    r"""Compare the answer with the gold answer as mathematics: 1 or 0; not a number where that could not be decided.

    s = 1[a ≡ a*], a = extract(y)

    Numbers are compared exactly; other expressions by math-verify (`\frac{1}{2}`, `0.5`; `x^2+2x+1`, `(x+1)^2`), in a
    pool of processes. A comparison that takes longer than `seconds` is killed with its process, which is replaced; its
    text gets no score (nan), which strategies count as unscored, and `tally["timeouts"]` counts it (also one that ended its
    process twice). A text without a
    readable answer scores 0, and `tally["unparsed"]` counts it. Other than `exact`, which grades by the task's own rule,
    this serves tasks whose rule compares text.

    Args:
        task: reads the answer.
        golds: id -> example with its gold answer; methods never see these.
        seconds: the hard limit of one comparison.
    """

    oracle: ClassVar[bool] = True

    task: Task
    golds: Mapping[str, Example]
    seconds: Annotated[float, Field(gt=0)] = 10.0
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Compare each text; equal answers are compared once."""
        gold = self.golds.get(example.id)
        if gold is None or gold.answer is None:
            raise DataError(f"verifier 'math': no gold answer for example '{example.id}' of task '{self.task.name}'")
        answers = [self.task.extract(text) for text in texts]
        different = list(dict.fromkeys(answer for answer in answers if answer is not None))
        same = await asyncio.gather(
            *(asyncio.to_thread(compare_mathematics, gold.answer, answer, seconds=self.seconds) for answer in different)
        )
        found: dict[str | None, float] = {None: 0.0}
        found |= {a: float("nan") if equal is None else float(equal) for a, equal in zip(different, same, strict=True)}
        undecided = {a for a, equal in zip(different, same, strict=True) if equal is None}
        self.tally["texts"] += len(texts)
        self.tally["unparsed"] += answers.count(None)
        self.tally["timeouts"] += sum(answer in undecided for answer in answers)
        return [Score(value=found[answer]) for answer in answers]
