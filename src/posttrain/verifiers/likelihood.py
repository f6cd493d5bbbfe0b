"""Scores a text by how likely the model finds it: no training, no gold answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.protocols import Engine, Task
from ..core.types import Example, Prompt, Score
from ..tasks.wording import conversation
from ._loaded import engine_of

__all__ = ["Likelihood"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The probability per token that the model gives the text (geometric mean).

    s = exp((1/T) Σ_t log p(y_t | x, y_<t)) in (0, 1], teacher-forced on the plain question x.

    Other than `best_of_n:verifier=likelihood`, which reads the log-probabilities that came with the samples, this runs
    the text through the engine: for texts from elsewhere, or to score with another model than the one that wrote them.

    Source: Wang et al. 2022 (arXiv 2203.11171), equation 1.

    Args:
        model: the model whose likelihood is taken; default: the one that answers.
    """

    oracle: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"score"})

    task: Task
    model: str | None = None
    engine: Engine | None = None

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text; an empty one scores 0."""
        engine = engine_of(self.engine, self.model, "verifier 'likelihood'")
        prompt = Prompt(messages=conversation(self.task, example))
        scored = await asyncio.gather(*(engine.score(prompt, text) for text in texts if text))
        means = iter([math.fsum(c.raw_logprobs) / len(c.raw_logprobs) if c.raw_logprobs else -math.inf for c in scored])
        return [Score(value=math.exp(next(means)) if text else 0.0) for text in texts]
