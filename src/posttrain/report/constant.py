"""What one answer to every question is worth: a gain up to there may be no more than a habit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ..core.protocols import Task
from ..core.types import Example
from .rung import Rung
from .words import percent

__all__ = ["best_constant", "constant_notes"]

_CLOSED = 20  # different right answers at most; with more, no single one is worth telling
_EACH = 5  # questions to each of these at least: few questions have few answers, however open they are
_MANY = 0.8  # of a rung's answers


def best_constant(task: Task, examples: Sequence[Example]) -> tuple[str, float] | None:
    """Return the answer that is right most often if it is given to every question, and how often; None for open answers.

    max_a (1/n) Σ_i grade(x_i, a), over the answers a that are right for some question.
    """
    answers = {example.answer for example in examples}
    if None in answers or not 1 < len(answers) <= min(_CLOSED, len(examples) / _EACH):
        return None
    known = sorted(answer for answer in answers if answer is not None)
    worth = {a: math.fsum(task.grade(example, a) for example in examples) / len(examples) for a in known}
    best = max(known, key=lambda answer: worth[answer])
    return best, worth[best]


def constant_notes(rungs: Sequence[Rung], asked: Mapping[str, tuple[Task, Sequence[Example]]]) -> list[str]:
    """Say by task what its best constant answer is worth, which rungs are no better, and which hardly say anything else.

    `asked` holds a task and its questions by the task's name in the report. Oracles, which are no method, are left out.
    """
    notes = []
    for name, (task, examples) in asked.items():
        found = best_constant(task, examples)
        if found is None:
            continue
        answer, worth = found
        own = [rung for rung in rungs if rung.asked == name and not rung.oracle and rung.lever != "diversity"]
        note = f"{name}: '{answer}' to every question would be right in {percent(worth)}."
        below = [rung.label for rung in own if _accuracy(rung) <= worth]
        if below:
            note += f" No better than that: {'; '.join(below)}."
        for rung in own:
            for said, times in Counter(row.answer for row in rung.rows if row.answer is not None).most_common(1):
                if times >= _MANY * len(rung.rows):
                    note += f" {rung.label} says '{said}' to {percent(times / len(rung.rows))}."
        notes.append(note)
    return notes


def _accuracy(rung: Rung) -> float:
    return math.fsum(row.score or 0.0 for row in rung.rows) / len(rung.rows)
