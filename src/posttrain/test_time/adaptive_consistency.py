"""Adaptive consistency: sample until the vote is settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Example, Prompt
from ..stats.stopping import settled, settled_at
from ..stats.vote import majority
from ._vote import draw, keys_of, tie_scores, votes_trace

__all__ = ["AdaptiveConsistency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConsistency:
    """Sample until the leading answer is ahead with enough certainty, then take the majority.

    Stop when P(p > ½) ≥ threshold for p ~ Beta(v₁ + 1, v₂ + 1), v₁ and v₂ the votes of the two most frequent answers.

    In closed form P = I_½(v₂ + 1, v₁ + 1), the regularised incomplete beta function; four samples that agree reach 0.97.
    Samples without a readable answer are no votes. Samples come in waves, which keeps the engine full; how many
    more were drawn than one by one is in the trace as `overshoot` (they vote too, they are paid). Sample i is
    that of self_consistency, so with the same n the two differ only in when they stop.

    Args:
        n: the most samples.
        threshold: certainty at which sampling stops.
        wave: samples asked for at a time.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Aggarwal et al. 2023, "Let's Sample Step by Step: Adaptive-Consistency" (arXiv 2305.11860), section 3.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Aggarwal et al. 2023, arXiv 2305.11860"
    cost: ClassVar[str] = "4 to n replies, the prompt again each wave (cached by most engines)"
    fails: ClassVar[str] = "the first few samples agree on a wrong answer; waves of 1 leave a busy engine's batch smaller"

    n: Annotated[int, Field(ge=1)] = 40
    threshold: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    wave: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates: list[Candidate] = []
        keys: list[str | None] = []
        done = False
        while len(candidates) < self.n and not done:
            wanted = range(len(candidates), min(len(candidates) + self.wave, self.n))
            drawn = await draw(tools, prompt, sampling, seed=seed, samples=wanted, have=candidates)
            candidates += drawn
            keys += keys_of(drawn, tools.key)
            done = settled(keys, self.threshold)
            if len(drawn) < len(wanted):
                break  # the budget

        winner = majority(keys, tie_scores(candidates))
        chosen = candidates[0 if winner is None else keys.index(winner)]
        trace: dict[str, Any] = votes_trace(keys)
        at = settled_at(keys, self.threshold)
        trace |= {"samples": len(candidates), "settled": done, "overshoot": 0 if at is None else len(candidates) - at}
        return Answer(text=chosen.text, answer=chosen.answer, candidates=tuple(candidates), trace=trace)
