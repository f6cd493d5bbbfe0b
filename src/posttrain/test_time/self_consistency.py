"""Self-consistency: sample several chains of thought and let their answers vote."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import BudgetSpentError, ConfigError
from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Example, Prompt, Sampling
from ..stats.vote import majority, tally, weighted
from ._scoring import Aggregate, Scorer, Transform, best_index
from ._variants import WORDINGS, Diversity, variants
from ._vote import keys_of, tie_scores, votes_trace

__all__ = ["SelfConsistency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency:
    """Sample n replies and let their answers vote.

    a* = argmax_a Σ_i w_i 1[a_i = a], over n samples (z_i, a_i) ~ p(z, a | x); reasoning z is marginalised.

    Weights: majority w = 1; likelihood w = exp((1/T) Σ_t log p(y_t)) under the model itself; verifier w = its score.
    Equal answers are those with equal task keys (1,000 = 1000.0). Samples without a readable answer do not vote; when none
    has one, there is no answer. A tied majority goes to the answer with the highest summed length-normalised
    log-probability, or to the one seen first where the engine gives none; other ties to the answer with more votes. The
    text returned is the winning answer's first sample, or its best weighted one.

    Args:
        n: how many samples.
        vote: "majority", "likelihood" or "verifier".
        verifier: the spec of the verifier that weighs the votes.
        aggregate: which number of a verifier that scores steps: its value, or last, min, product, mean of the steps.
        transform: "sigmoid" for verifiers with raw, perhaps negative, rewards.
        diversity: what makes samples differ beside the temperature: "wording" or "order" (of the shots); sample i uses
            variant i mod v.
        variants: how many orders of the shots.
        wordings: the texts put after the question, one a variant; empty: built-in ones.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models"
    (arXiv 2203.11171), section 2, equation 1; verifier-weighted: Li et al. 2022 (arXiv 2206.02336), equation 2, which
    also varies the prompt (section 2.1).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Wang et al. 2022, arXiv 2203.11171"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "n replies, one prompt per variant, and n scorings with vote=verifier"
    fails: ClassVar[str] = (
        "the most frequent answer is wrong (then more samples make it worse), or answers cannot be compared"
    )

    n: Annotated[int, Field(ge=1)] = 8
    vote: Literal["majority", "likelihood", "verifier"] = "majority"
    verifier: str | None = None
    aggregate: Aggregate = "value"
    transform: Transform = "raw"
    diversity: Diversity = "sampling"
    variants: Annotated[int, Field(ge=2)] = 4
    wordings: tuple[str, ...] = ()
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        if (self.vote == "verifier") != (self.verifier is not None):
            raise ConfigError("self_consistency: vote=verifier and verifier=SPEC go together: give both or neither")

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return () if self.verifier is None else (self.verifier,)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        scorer = self._scorer()
        if scorer is not None:
            scorer.check(tools)
        words = self.wordings or WORDINGS
        prompts = variants(prompt, example, self.diversity, count=self.variants, words=words, seed=seed)
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates = await self._draw(prompts, sampling, tools, seed)

        keys = keys_of(candidates, tools.key)
        trace: dict[str, Any] = votes_trace(keys)
        scores: list[float | None] = []
        if scorer is None:
            winner = majority(keys, tie_scores(candidates))
            totals = tally(keys)
        else:
            scores = await scorer(example, candidates, tools)
            weights = scorer.weights(scores)
            winner, totals = weighted(keys, weights), tally(keys, weights)
            trace |= {"weights": totals, "unscored": scores.count(None)}
            if scorer.oracle(tools):
                trace["oracle"] = True
        trace["tied"] = winner is not None and list(totals.values()).count(totals[winner]) > 1
        if len(prompts) > 1:
            trace["variants"] = [candidate.completion.sample % len(prompts) for candidate in candidates]

        holders = [i for i, key in enumerate(keys) if winner is not None and key == winner]
        chosen = candidates[best_index(scores, holders) if scores and holders else holders[0] if holders else 0]
        return Answer(
            text=chosen.text,
            answer=chosen.answer,
            candidates=candidates,
            scores=tuple(score for score in scores if score is not None) if None not in scores else (),
            trace=trace,
        )

    def _scorer(self) -> Scorer | None:
        if self.vote == "majority":
            return None
        spec = self.verifier if self.verifier is not None else "likelihood"
        method = f"self_consistency:vote={self.vote}"
        return Scorer(method=method, spec=spec, aggregate=self.aggregate, transform=self.transform)

    async def _draw(self, prompts: Sequence[Prompt], sampling: Sampling, tools: Tools, seed: int) -> tuple[Candidate, ...]:
        """Draw sample i from variant i mod v, all variants at once; those that do not fit the budget are left out."""
        count = min(len(prompts), self.n)
        calls = [tools.sample(prompts[v], sampling, seed=seed, samples=range(v, self.n, len(prompts))) for v in range(count)]
        parts = await asyncio.gather(*calls, return_exceptions=True)
        failed = [part for part in parts if isinstance(part, BaseException)]
        fatal = [error for error in failed if not isinstance(error, BudgetSpentError)]
        if fatal or len(failed) == len(parts):
            raise (fatal or failed)[0]
        drawn = [candidate for part in parts if not isinstance(part, BaseException) for candidate in part]
        return tuple(sorted(drawn, key=lambda candidate: candidate.completion.sample))
