"""Samples at a temperature: what a single draw is worth (pass@1 under sampling), and a pool to choose data from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draw n replies at a temperature and answer with the first.

    y ~ p_T,top-p(· | x): the answer is sample 0 of the pool that self-consistency and best-of-N draw from.

    Args:
        n: how many samples are drawn and kept; only the first one answers.
        temperature: T above 0.
        top_p: the nucleus (Holtzman et al. 2019, arXiv 1904.09751); 1 keeps all tokens.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Holtzman et al. 2019, arXiv 1904.09751 (nucleus)"
    cost: ClassVar[str] = "n replies, one prompt"
    fails: ClassVar[str] = "a draw is usually worse than greedy; it is the baseline that voting starts from"

    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        pool = tuple(await tools.sample(prompt, sampling, seed=seed, samples=range(self.n)))
        return Answer(text=pool[0].text, answer=pool[0].answer, candidates=pool)
