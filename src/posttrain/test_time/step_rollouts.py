"""Rollouts from every step of sampled replies: what the replies' steps are worth, for labels of a process reward model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import BudgetSpentError, ConfigError
from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt, Sampling

__all__ = ["StepRollouts", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRollouts:
    """Sample n replies, then go on k times from the end of each of their steps; the answers that come out are kept.

    y ~ p(· | x), and for each step but the last z_1 … z_k ~ p(· | x, y_≤step). The first reply answers. The trace has, for
    each reply, its steps and the rollouts' answers; `rolled_steps` grades them. Equal beginnings are rolled out once.

    Args:
        n: replies.
        k: rollouts from each step.
        separator: what splits a reply into steps; a written \\n is a line break.
        temperature: above 0, of replies and rollouts.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Wang et al. 2023, "Math-Shepherd" (arXiv 2312.08935), section 3.3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    paper: ClassVar[str] = "Wang et al. 2023, arXiv 2312.08935, section 3.3"
    cost: ClassVar[str] = "n replies, and k rollouts from each of their steps"
    fails: ClassVar[str] = "k small: noisy labels; a model that is never right from anywhere labels every step wrong"

    n: Annotated[int, Field(ge=1)] = 2
    k: Annotated[int, Field(ge=1)] = 4
    separator: str = "\\n"
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        separator = self.separator.replace("\\n", "\n")
        if not separator:
            raise ConfigError("step_rollouts: separator must not be empty; write \\n for the end of a line")
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        pool = tuple(await tools.sample(prompt, sampling, seed=seed, samples=range(self.n)))
        pieces = [cut(candidate.text, separator) for candidate in pool]
        begun = list(dict.fromkeys(beginning for steps in pieces for _, beginning in steps[:-1]))
        found = await asyncio.gather(*(self._answers(prompt, beginning, sampling, tools, seed) for beginning in begun))
        rolled = dict(zip(begun, found, strict=True))
        trace: dict[str, Any] = {
            "steps": [[step for step, _ in steps] for steps in pieces],
            "rollouts": [[rolled[beginning] for _, beginning in steps[:-1]] for steps in pieces],
        }
        return Answer(text=pool[0].text, answer=pool[0].answer, candidates=pool, trace=trace)

    async def _answers(
        self, prompt: Prompt, beginning: str, sampling: Sampling, tools: Tools, seed: int
    ) -> list[str | None]:
        """Return the answers of k rollouts behind a beginning; fewer, or none, when the budget is spent."""
        behind = replace(prompt, prefix=(*prompt.pieces, beginning) if prompt.pieces else beginning)
        try:
            drawn = await tools.sample(behind, sampling, seed=seed, samples=range(self.k))
        except BudgetSpentError:
            return []
        return [tools.extract(beginning + candidate.text) for candidate in drawn]


def cut(text: str, separator: str) -> list[tuple[str, str]]:
    """Return the steps of a text without the spaces around them, each with all of the text up to and with its separator."""
    found, at = [], 0
    for piece in text.split(separator):
        at = min(len(text), at + len(piece) + len(separator))
        if piece.strip():
            found.append((piece.strip(), text[:at]))
    return found
