"""Few-shot prompting (in-context learning): k solved examples before the question, answers without steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Task
from ..core.types import Example, Prompt
from ._shots import draw_shots
from ._turns import Style, few_shot_prompt

__all__ = ["FewShot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """Show k solved examples, answers without steps, then ask.

    prompt = [system] (question₁, "Answer: a₁") … (question_k, "Answer: a_k") question.

    Shots come from the task's training split; see `_shots.draw_shots` for how they are drawn and what counts as a copy.

    Args:
        k: how many shots; 1 is one-shot.
        common: the same shots for every example: cheaper, for their prefix is computed once, but the result then depends
            on one draw.
        style: "chat" (a turn each) or "text" (one user turn).
        system: a system message.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165), section 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Brown et al. 2020, arXiv 2005.14165"
    cost: ClassVar[str] = "k × (question + answer) + question"
    fails: ClassVar[str] = "answers need steps: shots without steps teach the model to guess in one go"

    k: Annotated[int, Field(ge=1)] = 5
    common: bool = False
    style: Style = "chat"
    system: str | None = None

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        shots = draw_shots(
            task, example, k=self.k, seed=seed, common=self.common, usable=lambda shot: shot.answer is not None
        )
        pairs = [(shot, f"Answer: {shot.answer}") for shot in shots]
        return few_shot_prompt(task, example, pairs, style=self.style, system=self.system)
