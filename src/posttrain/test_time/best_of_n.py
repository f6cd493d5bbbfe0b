"""Best-of-N: sample several replies and keep the one that scores best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import CapabilityError, ConfigError
from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Example, Prompt
from ..stats.vote import weighted
from ._vote import keys_of, mean_logprob

__all__ = ["BestOfN"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN:
    """Sample n replies and keep the one that a verifier, or the model's own likelihood, scores best.

    y* = argmax_i s(x, y_i), or weighted: a* = argmax_a Σ_i s(x, y_i) 1[a_i = a], over n samples y_i ~ p(· | x).

    The weighted form is the sum, not the mean: the mean forgets how many samples agree. `verifier=likelihood` takes
    s = exp((1/T) Σ_t log p(y_t)), the length-normalised probability, from the samples themselves at no further cost.
    A sample without a readable answer, or without a score, is chosen only when there is no other. With a verifier that
    looks at the gold answer the result is pass@n, not accuracy: the trace says `"oracle": True`.

    Args:
        n: how many samples.
        verifier: "likelihood", or the spec of a verifier (`exact`, `rule`, `(rule:regex="…")`, a reward model, …).
        weighted: sum the scores of equivalent answers (scores must not be negative).
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (arXiv 2110.14168), section 4.1;
    weighted: Li et al. 2022, "Making Large Language Models Better Reasoners with Step-Aware Verifier" (arXiv 2206.02336),
    section 3.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Cobbe et al. 2021, arXiv 2110.14168; weighted: Li et al. 2022, arXiv 2206.02336"
    cost: ClassVar[str] = "n replies, one prompt, and n scorings (none for likelihood)"
    fails: ClassVar[str] = "the score can be gamed: with growing n the best-scoring reply is ever more often a wrong one"

    n: Annotated[int, Field(ge=1)] = 8
    verifier: str = "likelihood"
    weighted: bool = False
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return () if self.verifier == "likelihood" else (self.verifier,)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        if self.verifier == "likelihood" and "logprobs" not in tools.engine.can:
            raise CapabilityError("best_of_n:verifier=likelihood needs log-probabilities, which this engine does not give")
        if self.verifier != "likelihood" and self.verifier not in tools.verifiers:
            raise ConfigError(f"best_of_n: verifier '{self.verifier}' was not set up")
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates = tuple(await tools.sample(prompt, sampling, seed=seed, samples=range(self.n)))
        scores = await self._scores(example, candidates, tools)

        keys = keys_of(candidates, tools.key)
        unscored = scores.count(None)
        trace: dict[str, Any] = {"unparsed": keys.count(None), "unscored": unscored}
        if self.verifiers and tools.verifiers[self.verifier].oracle:
            trace["oracle"] = True
        if unscored:
            trace["scores"] = list(scores)
        winner = weighted(keys, self._weights(scores)) if self.weighted else None
        eligible = [i for i, key in enumerate(keys) if (key == winner if winner is not None else key is not None)]
        best = max(eligible or range(self.n), key=lambda i: (_or_lowest(scores[i]), -i))
        known = [score for score in scores if score is not None]
        return Answer(
            text=candidates[best].text,
            answer=candidates[best].answer,
            candidates=candidates,
            scores=tuple(known) if not unscored else (),
            trace=trace,
        )

    async def _scores(self, example: Example, candidates: Sequence[Candidate], tools: Tools) -> list[float | None]:
        """Return one score a candidate; None for a missing or not-a-number one."""
        if self.verifier == "likelihood":
            means = [mean_logprob(candidate.completion) for candidate in candidates]
            return [None if mean is None or math.isnan(mean) else math.exp(mean) for mean in means]
        given = await tools.verifiers[self.verifier](example, [candidate.text for candidate in candidates])
        return [None if score is None or not math.isfinite(score.value) else score.value for score in given]

    def _weights(self, scores: Sequence[float | None]) -> list[float]:
        lowest = min((score for score in scores if score is not None), default=0.0)
        if lowest < 0:
            raise ConfigError(
                f"best_of_n:weighted=true sums scores, and verifier '{self.verifier}' gave {lowest:g}: use a verifier with "
                "scores from 0 to 1, or weighted=false"
            )
        return [score or 0.0 for score in scores]


def _or_lowest(score: float | None) -> float:
    return -math.inf if score is None else score
