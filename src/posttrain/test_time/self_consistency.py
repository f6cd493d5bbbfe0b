"""Self-consistency: sample several chains of thought and let their answers vote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt
from ..stats.vote import majority, tally
from ._vote import keys_of, tie_scores

__all__ = ["SelfConsistency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency:
    """Sample n replies and let their answers vote.

    a* = argmax_a Σ_i 1[a_i = a], over n samples (z_i, a_i) ~ p(z, a | x); reasoning z is marginalised by counting.

    Equal answers are those with equal task keys (1,000 = 1000.0). Samples without a readable answer do not vote; when none
    has one, there is no answer. A tie goes to the answer with the highest summed length-normalised log-probability, or to
    the one seen first where the engine gives none. The text returned is the first sample with the winning answer.

    Args:
        n: how many samples.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models"
    (arXiv 2203.11171), section 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Wang et al. 2022, arXiv 2203.11171"
    cost: ClassVar[str] = "n replies, one prompt"
    fails: ClassVar[str] = (
        "the most frequent answer is wrong (then more samples make it worse), or answers cannot be compared"
    )

    n: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates = tuple(await tools.sample(prompt, sampling, seed=seed, samples=range(self.n)))
        keys = keys_of(candidates, tools.key)
        votes = tally(keys)
        winner = majority(keys, tie_scores(candidates))
        chosen = candidates[0 if winner is None else keys.index(winner)]
        return Answer(
            text=chosen.text,
            answer=chosen.answer,
            candidates=candidates,
            trace={
                "votes": {key: int(count) for key, count in votes.items()},
                "unparsed": keys.count(None),
                "tied": winner is not None and list(votes.values()).count(votes[winner]) > 1,
            },
        )
