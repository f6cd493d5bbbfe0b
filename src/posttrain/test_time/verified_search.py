"""Verified search: sample, let a verifier decide yes or no, and go on until an answer is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Example, Prompt
from ._scoring import Aggregate, Scorer, best_index
from ._vote import draw, keys_of

__all__ = ["REJECTED", "VerifiedSearch"]

REJECTED = "These answers have been checked and are wrong: {answers}. Find the mistake and give another answer."


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSearch:
    """Sample until a verifier accepts an answer.

    i* = min{i < n : v(x, y_i) ≥ threshold}; without one, y* = argmax_i v(x, y_i).

    The verifier's decision is binary: its score reaches the threshold, or not. With `feedback` the next prompt names the
    answers rejected so far (each once), else sample i is that of best_of_n's pool. A reply without a readable answer, or
    cut by the token limit, is never accepted. Without an accepted answer the best scored readable one is given.

    With a verifier that accepts right answers with probability t, wrong ones with f, and samples right with probability p,
    the accepted answer is right with probability pt/(pt + (1 − p)f): a lenient verifier bounds what searching can bring.

    Args:
        n: the most samples.
        verifier: the spec of the verifier that decides (`rule`, a reward model, a judge, …).
        threshold: the score from which it accepts.
        aggregate: which number of a verifier that scores steps: its value, or last, min, product, mean of the steps.
        feedback: tell the model which answers were rejected.
        rejected: the words of the feedback, if not `REJECTED`; `{answers}` stands for the answers.
        wave: samples asked for at a time; more are quicker and may be drawn in vain.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Cobbe et al. 2021 (arXiv 2110.14168), section 4.2 (search by a verifier); rejected attempts in the
    prompt: Shinn et al. 2023, "Reflexion" (arXiv 2303.11366), section 3; the bound of a lenient verifier: Stroebl et al.
    2024 (arXiv 2411.17501).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Cobbe et al. 2021, arXiv 2110.14168; Stroebl et al. 2024, arXiv 2411.17501"
    cost: ClassVar[str] = "1 to n replies and scorings, the prompt again each wave"
    fails: ClassVar[str] = "the verifier accepts wrong answers: the first one accepted ends the search"

    n: Annotated[int, Field(ge=1)] = 8
    verifier: str = "rule"
    threshold: float = 1.0
    aggregate: Aggregate = "value"
    feedback: bool = True
    rejected: str | None = None
    wave: Annotated[int, Field(ge=1)] = 1
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
        tried: list[Candidate] = []
        scores: list[float | None] = []
        accepted: int | None = None
        while len(tried) < self.n and accepted is None:
            wanted = range(len(tried), min(len(tried) + self.wave, self.n))
            asked = self._told(prompt, tried, tools) if self.feedback else prompt
            drawn = await draw(tools, asked, sampling, seed=seed, samples=wanted, have=tried)
            tried += drawn
            scores += await scorer(example, drawn, tools) if drawn else []
            accepted = next((i for i in range(len(tried)) if self._accepts(tried[i], scores[i])), None)
            if len(drawn) < len(wanted):
                break  # the budget

        readable = [i for i, candidate in enumerate(tried) if candidate.answer is not None] or range(len(tried))
        chosen = best_index(scores, readable) if accepted is None else accepted
        trace: dict[str, Any] = {
            "tries": len(tried),
            "accepted": accepted is not None,
            "overshoot": 0 if accepted is None else len(tried) - accepted - 1,
            "scores": scores,
        }
        if scorer.oracle(tools):
            trace["oracle"] = True
        return Answer(
            text=tried[chosen].text,
            answer=tried[chosen].answer,
            candidates=tuple(tried),
            scores=tuple(score for score in scores if score is not None) if None not in scores else (),
            trace=trace,
        )

    def _scorer(self) -> Scorer:
        return Scorer(method="verified_search", spec=self.verifier, aggregate=self.aggregate)

    def _accepts(self, candidate: Candidate, score: float | None) -> bool:
        whole = candidate.answer is not None and candidate.completion.finish != "length"
        return whole and score is not None and score >= self.threshold

    def _told(self, prompt: Prompt, tried: Sequence[Candidate], tools: Tools) -> Prompt:
        """Return the prompt with the rejected answers named after the question, equivalent ones once."""
        answers: dict[str | None, str] = {}
        for candidate, key in zip(tried, keys_of(tried, tools.key), strict=True):
            if candidate.answer is not None:
                answers.setdefault(key, candidate.answer)
        if not answers:
            return prompt
        *earlier, last = prompt.messages
        told = (self.rejected or REJECTED).replace("{answers}", ", ".join(answers.values()))
        return replace(prompt, messages=(*earlier, replace(last, content=f"{last.content}\n\n{told}")))
