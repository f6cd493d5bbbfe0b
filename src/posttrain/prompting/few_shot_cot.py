"""Few-shot chain of thought: k examples solved step by step before the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.types import Example, Prompt
from ._shots import draw_shots
from ._turns import Style, few_shot_prompt

__all__ = ["FewShotCot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotCot:
    """Show k examples solved step by step, then ask.

    prompt = [system] (question₁, steps₁ "Answer: a₁") … (question_k, steps_k "Answer: a_k") question.

    Shots come from the training examples that have a worked solution; see `_shots.draw_shots`.

    Args:
        k: how many shots (the paper uses 8).
        common: the same shots for every example: cheaper, for their prefix is computed once, but the result then depends
            on one draw.
        style: "chat" (a turn each) or "text" (one user turn).
        system: a system message.

    Source: Wei et al. 2022, "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models" (arXiv 2201.11903),
    section 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Wei et al. 2022, arXiv 2201.11903"
    cost: ClassVar[str] = "k × (question + steps + answer) + question; longer replies"
    fails: ClassVar[str] = (
        "small models copy the look of the steps without their content; no training example has worked steps"
    )

    k: Annotated[int, Field(ge=1)] = 8
    common: bool = False
    style: Style = "chat"
    system: str | None = None

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        if all(shot.rationale is None for shot in task.examples("train")):
            raise ConfigError(f"task '{task.name}' has no worked solutions to show: use few_shot instead of few_shot_cot")
        shots = draw_shots(
            task, example, k=self.k, seed=seed, common=self.common, usable=lambda shot: shot.rationale is not None
        )
        pairs = [(shot, str(shot.rationale)) for shot in shots]
        return few_shot_prompt(task, example, pairs, style=self.style, system=self.system)
