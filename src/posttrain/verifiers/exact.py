"""Compares with the gold answer: an oracle, for measuring pass@N and as a reward in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import DataError
from ..core.protocols import Task
from ..core.types import Example, Score

__all__ = ["Exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Grade against the gold answer: 1 or 0.

    s = grade(gold, extract(y))

    Args:
        task: reads and grades.
        golds: id -> example with its gold answer; methods never see these.
    """

    oracle: ClassVar[bool] = True

    task: Task
    golds: Mapping[str, Example]

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Grade each text."""
        gold = self.golds.get(example.id)
        if gold is None:
            raise DataError(f"verifier 'exact': no gold answer for example '{example.id}' of task '{self.task.name}'")
        return [Score(value=self.task.grade(gold, self.task.extract(text))) for text in texts]
