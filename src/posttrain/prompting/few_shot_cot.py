"""Few-shot chain of thought: k examples solved step by step before the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.types import Example, Prompt
from ._nearest import Embedding
from ._shots import Draw, Order, Select
from ._turns import Style, few_shot_prompt

__all__ = ["FewShotCot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotCot:
    """Show k examples solved step by step, then ask.

    prompt = [system] (question₁, steps₁ "Answer: a₁") … (question_k, steps_k "Answer: a_k") question.

    Shots come from the training examples that have a worked solution; see `_shots.Draw`. When the prompt does not
    fit the context, whole shots are dropped from the front, and counted in the row's trace.

    Args:
        k: how many shots (the paper uses 8).
        select: how they are chosen: "random" for each example, "fixed" (the first k of the training split), "balanced" over
            the answers, or "nearest" (Liu et al. 2021, arXiv 2101.06804, section 3).
        common: one draw for every example: cheaper, for their prefix is computed once, but the result then depends on it.
        order: "drawn", "reversed", "nearest_last" (the most similar next to the question), or a number: shuffled by it.
        embedding: what makes questions similar: "tfidf" of their words, or "minilm" (extra `embeddings`).
        style: "chat" (a turn each), "text" or "markdown" (one user turn).
        instruction: add the task's sentence that says how to give the answer.
        system: a system message.

    Source: Wei et al. 2022, "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models" (arXiv 2201.11903),
    section 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Wei et al. 2022, arXiv 2201.11903"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "k × (question + steps + answer) + question; longer replies"
    fails: ClassVar[str] = (
        "small models copy the look of the steps without their content; no training example has worked steps"
    )

    k: Annotated[int, Field(ge=1)] = 8
    select: Select = "random"
    common: bool = False
    order: Order = "drawn"
    embedding: Embedding = "tfidf"
    style: Style = "chat"
    instruction: bool = True
    system: str | None = None

    def __post_init__(self) -> None:
        self._draw  # noqa: B018  (settings that contradict each other are said now)

    @property
    def _draw(self) -> Draw:
        return Draw(k=self.k, select=self.select, common=self.common, embedding=self.embedding, order=self.order)

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        if all(shot.rationale is None for shot in task.examples("train")):
            raise ConfigError(f"task '{task.name}' has no worked solutions to show: use few_shot instead of few_shot_cot")
        shots = self._draw.shots(task, example, seed=seed, usable=lambda shot: shot.rationale is not None)
        pairs = [(shot, str(shot.rationale)) for shot in shots]
        return few_shot_prompt(task, example, pairs, style=self.style, system=self.system, instruct=self.instruction)
