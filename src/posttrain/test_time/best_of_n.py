"""Best-of-N: sample several replies and keep the one that scores best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt
from ..stats.vote import weighted
from ._scoring import Aggregate, Scorer, Transform, best_index
from ._vote import keys_of

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
        verifier: "likelihood", or the spec of a verifier (`exact`, `rule`, `(rule:regex="…")`, a reward model, a judge, …).
        weighted: sum the scores of equivalent answers (scores must not be negative).
        aggregate: the verifier's own value, or from its scores of the steps (a process reward model) the last, min,
            product or mean.
        transform: "sigmoid" maps raw, perhaps negative, rewards into (0, 1), so that they can be summed.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (arXiv 2110.14168), section 4.2;
    weighted: Li et al. 2022, "Making Large Language Models Better Reasoners with Step-Aware Verifier" (arXiv 2206.02336),
    section 3; scores of steps: Lightman et al. 2023, "Let's Verify Step by Step" (arXiv 2305.20050).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Cobbe et al. 2021, arXiv 2110.14168; weighted: Li et al. 2022, arXiv 2206.02336"
    cost: ClassVar[str] = "n replies, one prompt, and n scorings (none for likelihood)"
    fails: ClassVar[str] = "the score can be gamed: with growing n the best-scoring reply is ever more often a wrong one"

    n: Annotated[int, Field(ge=1)] = 8
    verifier: str = "likelihood"
    weighted: bool = False
    aggregate: Aggregate = "value"
    transform: Transform = "raw"
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return self._scorer().verifiers

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        scorer = self._scorer()
        scorer.check(tools)
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates = tuple(await tools.sample(prompt, sampling, seed=seed, samples=range(self.n)))
        scores = await scorer(example, candidates, tools)

        keys = keys_of(candidates, tools.key)
        unscored = scores.count(None)
        trace: dict[str, Any] = {"unparsed": keys.count(None), "unscored": unscored}
        if self.aggregate != "value":
            trace["aggregate"] = self.aggregate
        if scorer.oracle(tools):
            trace["oracle"] = True
        if unscored:
            trace["scores"] = list(scores)
        winner = weighted(keys, scorer.weights(scores)) if self.weighted else None
        eligible = [i for i, key in enumerate(keys) if (key == winner if winner is not None else key is not None)]
        best = best_index(scores, eligible or range(len(candidates)))
        known = [score for score in scores if score is not None]
        return Answer(
            text=candidates[best].text,
            answer=candidates[best].answer,
            candidates=candidates,
            scores=tuple(known) if not unscored else (),
            trace=trace,
        )

    def _scorer(self) -> Scorer:
        method = "best_of_n:weighted=true" if self.weighted else "best_of_n"
        return Scorer(method=method, spec=self.verifier, aggregate=self.aggregate, transform=self.transform)
