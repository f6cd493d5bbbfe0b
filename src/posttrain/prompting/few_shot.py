"""Few-shot prompting (in-context learning): k solved examples before the question, answers without steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Task
from ..core.types import Example, Prompt
from ..tasks.wording import answer_text
from ._nearest import Embedding
from ._shots import Draw, Order, Select
from ._turns import Style, few_shot_prompt

__all__ = ["FewShot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """Show k solved examples, answers without steps, then ask.

    prompt = [system] (question₁, "Answer: a₁") … (question_k, "Answer: a_k") question; replies are bare where the task asks
    for no form.

    Shots come from the task's training split; see `_shots.Draw` for how they are chosen and what counts as a copy. When the
    prompt does not fit the context, whole shots are dropped from the front, and counted in the row's trace.

    Args:
        k: how many shots; 1 is one-shot.
        select: how they are chosen: "random" for each example, "fixed" (the first k of the training split), "balanced" over
            the answers, or "nearest" (Liu et al. 2021, arXiv 2101.06804, section 3).
        common: one draw for every example: cheaper, for their prefix is computed once, but the result then depends on it.
        order: "drawn", "reversed", "nearest_last" (the most similar next to the question), or a number: shuffled by it.
        embedding: what makes questions similar: "tfidf" of their words, or "minilm" (extra `embeddings`).
        style: "chat" (a turn each), "text" or "markdown" (one user turn).
        instruction: add the task's sentence that says how to give the answer.
        system: a system message.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165), section 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Brown et al. 2020, arXiv 2005.14165"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "k × (question + answer) + question"
    fails: ClassVar[str] = "answers need steps: shots without steps teach the model to guess in one go"

    k: Annotated[int, Field(ge=1)] = 5
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
        shots = self._draw.shots(task, example, seed=seed, usable=lambda shot: shot.answer is not None)
        pairs = [(shot, answer_text(task, shot.answer)) for shot in shots]
        return few_shot_prompt(task, example, pairs, style=self.style, system=self.system, instruct=self.instruction)
