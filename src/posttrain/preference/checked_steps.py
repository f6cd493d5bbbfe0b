"""Judged steps without people or rollouts, where steps are calculations: each is right or wrong by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled
from ..tasks.arithmetic import evaluate
from ..verifiers.process_reward import split_steps

__all__ = ["CheckedSteps", "calculation_holds", "judged_steps"]

_NUMBER = r"[-(\s]*\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\s*\)*"
_EXPRESSION = rf"{_NUMBER}(?:\s*(?:[-+*/×÷x]|mod)\s*{_NUMBER})*"
_GOES_ON = ("^", "%", "!", "√", "+", "*", "/", "×", "÷")  # what stands before is a part of the calculation, and not read
_SIGN = re.compile(r"\d[)\s]*(?:[-+*/×÷x]|mod)")
_BEFORE, _BEHIND = re.compile(rf"(?<![\w.,]){_EXPRESSION}\s*$"), re.compile(rf"^\s*{_EXPRESSION}(?![\d%]|[.,]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSteps:
    """Label the steps of an evaluation's replies by their own arithmetic: rows for `process_reward`.

    A step is right if all calculations in it hold (`72 mod 57 = 15`), wrong if one does not, and not judged if it has none.
    The last step is also wrong if the task's grader calls the reply wrong, and else right. Behind the first wrong step none
    is judged. Replies cut by the length limit, copies and replies without steps are left out.

    That a calculation holds does not say that it was the one to make: a reply that goes astray without a slip is wrong at
    its last step only.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "labels up to the first mistake: Lightman et al. 2023, arXiv 2305.20050, section 2.4"
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "steps are no calculations, or the right calculation is not the one that was to be made"
    summary: ClassVar[str] = "judged steps for a process reward model by the arithmetic of each step"

    separator: Annotated[str, Field(min_length=1)] = "\\n"

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        rows: list[dict[str, Any]] = []
        counts = dict.fromkeys(("questions", "replies", "cut", "repeated", "without_steps", "with_a_wrong_step", "rows"), 0)
        for item in sampled:
            counts["questions"] += 1
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            seen = set()
            for text, score, finish in zip(item.texts, item.scores, item.finishes, strict=True):
                counts["replies"] += 1
                steps = split_steps(text, self.separator)
                if finish != "stop" or tuple(steps) in seen or not steps:
                    counts["cut" if finish != "stop" else "repeated" if steps else "without_steps"] += 1
                    continue
                seen.add(tuple(steps))
                labels = judged_steps(steps, right=score >= 1)
                counts["with_a_wrong_step"] += False in labels
                rows.append({"id": item.example.id, "prompt": messages, "steps": steps, "labels": labels})
        if not rows:
            raise DataError(
                f"checked_steps: no rows: of {counts['replies']} replies {counts['cut']} were cut by the token limit"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})


def calculation_holds(step: str) -> bool | None:
    """Whether every `expression = number` in a step is true; None where there is none, or where it says that it rounds."""
    found = []
    for place, (left, right) in enumerate(pairwise(step.split("="))):
        before, behind = _BEFORE.search(left), _BEHIND.search(right)
        if before is None or behind is None or left[: before.start()].rstrip().endswith(_GOES_ON):
            continue
        calculated = _SIGN.search(before.group()) or (place and before.group() == left)  # and no number at a sentence's end
        sides = [evaluate(side.group()) for side in (before, behind)]
        if calculated and None not in sides:
            found.append(sides[0] == sides[1])
    if not found or (not all(found) and "round" in step.lower()):
        return None
    return all(found)


def judged_steps(steps: Sequence[str], *, right: bool) -> list[bool | None]:
    """Return the label of each step, None behind the first wrong one."""
    labels = [calculation_holds(step) for step in steps]
    if labels:
        labels[-1] = labels[-1] is not False and right
    wrong = next((k for k, label in enumerate(labels) if label is False), len(labels))
    return [label if k <= wrong else None for k, label in enumerate(labels)]
