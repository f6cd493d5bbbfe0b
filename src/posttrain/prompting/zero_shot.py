"""Zero-shot prompting: the question and how to give the answer, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.protocols import Task
from ..core.types import Example, Prompt
from ..tasks.wording import conversation

__all__ = ["ZeroShot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """Ask the question and say how to give the answer, nothing else.

    prompt = [system] question + instruction.

    Args:
        instruction: add the task's sentence that says how to give the answer.
        system: a system message.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165), section 2 (zero-shot).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Brown et al. 2020, arXiv 2005.14165"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "question"
    fails: ClassVar[str] = "the model does not know the form of the answer, or answers before it has worked the problem out"

    instruction: bool = True
    system: str | None = None

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        return Prompt(messages=conversation(task, example, self.system, instruct=self.instruction))
