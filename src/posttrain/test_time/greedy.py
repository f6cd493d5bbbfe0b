"""Greedy decoding: the most likely token at each step. The baseline of every strategy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt

__all__ = ["Greedy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Take the most likely token at each step: one reply at temperature 0.

    y_t = argmax_v p(v | x, y_<t)
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = ""
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "1 reply"
    fails: ClassVar[str] = "the most likely first step is wrong, or the reply falls into repetition"

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        (only,) = await tools.sample(prompt, replace(tools.sampling, temperature=0.0), seed=seed)
        return Answer(text=only.text, answer=only.answer, candidates=(only,))
