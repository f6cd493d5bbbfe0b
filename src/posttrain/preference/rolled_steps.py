"""Judged steps without people: each step's value is how often the model is right when it goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled

__all__ = ["RolledSteps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledSteps:
    """Label the steps of an evaluation with `step_rollouts`: rows for `process_reward`.

    With r_j = 1 for a rollout behind step k whose answer the task's grader calls right, the label is (1/K) Σ_j r_j (`soft`),
    or 1 if any is right (`hard`). The last step's label is whether the reply itself is right. Replies cut by the length
    limit and replies without steps are left out; a step without rollouts (a spent budget) has no label.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    paper: ClassVar[str] = "Wang et al. 2023, arXiv 2312.08935, equations 3 and 4"
    cost: ClassVar[str] = "the sampling and rollouts of the evaluation it reads"
    fails: ClassVar[str] = "a wrong step that the model recovers from looks right, a right one it cannot use looks wrong"
    summary: ClassVar[str] = "judged steps for a process reward model from rollouts of an earlier evaluation"

    estimate: Literal["soft", "hard"] = "soft"

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        rows: list[dict[str, Any]] = []
        counts = dict.fromkeys(("questions", "replies", "cut", "without_steps", "repeated", "rows"), 0)
        for item in sampled:
            if "rollouts" not in item.trace:
                raise DataError("rolled_steps: this evaluation made no rollouts: sample with strategy step_rollouts:n=…,k=…")
            counts["questions"] += 1
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            seen = set()
            for i, (steps, rollouts) in enumerate(zip(item.trace["steps"], item.trace["rollouts"], strict=True)):
                counts["replies"] += 1
                if item.finishes[i] != "stop" or not steps or tuple(steps) in seen:
                    name = "cut" if item.finishes[i] != "stop" else "repeated" if steps else "without_steps"
                    counts[name] += 1
                    continue
                seen.add(tuple(steps))
                labels = [self._label(task, item, answers) for answers in rollouts] + [item.scores[i]]
                rows.append({"id": item.example.id, "prompt": messages, "steps": list(steps), "labels": labels})
        if not rows:
            raise DataError(
                f"rolled_steps: no rows: of {counts['replies']} replies {counts['cut']} were cut by the token limit"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})

    def _label(self, task: Task, item: Sampled, answers: Sequence[str | None]) -> float | None:
        """Return a step's value from the answers of its rollouts."""
        right = [task.grade(item.example, answer) for answer in answers]
        if not right:
            return None
        return max(right) if self.estimate == "hard" else sum(right) / len(right)
