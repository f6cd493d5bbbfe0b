"""Self-refine: write, criticise, revise, until the answer is accepted."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import BudgetSpentError
from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Candidate, Example, Message, Prompt
from ._scoring import Scorer, best_index
from ._vote import draw, keys_of

__all__ = ["CRITIQUE", "REVISE", "SelfRefine", "verdict"]

CRITIQUE = (
    "Check this answer step by step: is every step right, and does it answer the question? Say what is wrong and how to "
    "mend it. Do not write a new answer. End with one line, either 'Verdict: correct' or 'Verdict: incorrect'."
)
REVISE = "A reviewer says of your answer:\n\n{critique}\n\nWrite a full, corrected answer in the form that was asked for."

_VERDICT = re.compile(r"^[\s*_>]*verdict\s*:[\s*_]*(correct|incorrect)[\s*_.]*$", re.IGNORECASE | re.MULTILINE)


def verdict(critique: str) -> bool | None:
    """Return the last verdict that has a line of its own; None when there is none (that is not an acceptance)."""
    found = _VERDICT.findall(critique)
    return found[-1].lower() == "correct" if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfRefine:
    """Write an answer, let the model criticise and revise it, until it is accepted.

    y₀ ~ p(· | x); f_t ~ p(· | x, y_t, critique); y_{t+1} ~ p(· | x, y_t, f_t, revise).

    Accepted means: the verifier's score reaches `threshold`; without a verifier, the critique ends with "Verdict: correct"
    on a line of its own. An unreadable verdict is a rejection, and a reply cut by the token limit is never accepted. Each
    round sees the question, the latest answer and its critique, never the earlier ones: the context does not grow. The
    answer is the best scored attempt with a verifier; without, the accepted one, or the last with a readable answer.
    Candidates are in the order of writing, so that flips from right to wrong can be counted.

    Args:
        rounds: the most revisions.
        verifier: the spec of the verifier that accepts; none: the critic's verdict does.
        threshold: the score from which a verifier accepts.
        critique: what the critic is asked, if not `CRITIQUE` (without a verifier, it must ask for the verdict line).
        revise: what the writer is told, if not `REVISE`; `{critique}` stands for the critique.
        temperature: of answers and critiques.

    Source: Madaan et al. 2023, "Self-Refine: Iterative Refinement with Self-Feedback" (arXiv 2303.17651), section 2,
    algorithm 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Madaan et al. 2023, arXiv 2303.17651"
    cost: ClassVar[str] = "1 + 2 × rounds replies, each reads the question and the latest answer again"
    fails: ClassVar[str] = "without an outside signal the critic breaks right answers as often as it mends wrong ones"

    rounds: Annotated[int, Field(ge=0)] = 3
    verifier: str | None = None
    threshold: float = 1.0
    critique: str | None = None
    revise: str | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return () if self.verifier is None else (self.verifier,)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        scorer = None if self.verifier is None else Scorer(method="self_refine", spec=self.verifier)
        if scorer is not None:
            scorer.check(tools)
        sampling = replace(tools.sampling, temperature=self.temperature)
        attempts: list[Candidate] = await draw(tools, prompt, sampling, seed=seed)
        scores: list[float | None] = []
        critiques: list[str] = []
        accepted = False
        while True:
            latest = attempts[-1]
            whole = latest.completion.finish != "length" and latest.answer is not None
            if scorer is not None:
                scores += await scorer(example, [latest], tools)
                accepted = whole and (score := scores[-1]) is not None and score >= self.threshold
            if accepted or (scorer is not None and len(attempts) > self.rounds):
                break
            if len(critiques) == self.rounds:
                break
            critique = await self._criticise(prompt, latest, tools, derive(seed, "critique", len(critiques)))
            if critique is None:
                break  # the budget
            critiques.append(critique)
            if scorer is None and whole and verdict(critique):
                accepted = True
                break
            request = _after(prompt, latest, (self.revise or REVISE).replace("{critique}", critique.strip()))
            revision = derive(seed, "revision", len(critiques))
            drawn = await draw(tools, request, sampling, seed=revision, have=attempts)
            if not drawn:
                break
            attempts += drawn

        keys = keys_of(attempts, tools.key)
        readable = [i for i, key in enumerate(keys) if key is not None] or [len(attempts) - 1]
        chosen = len(attempts) - 1 if accepted else readable[-1] if scorer is None else best_index(scores, readable)
        trace: dict[str, Any] = {
            "revisions": len(attempts) - 1,
            "accepted": accepted,
            "chosen": chosen,
            "verdicts": [verdict(critique) for critique in critiques],
            "changed": [key != keys[0] for key in keys],
            "drifted": keys[chosen] != keys[0],
            "critiques": critiques,
        }
        if scorer is not None:
            trace["scores"] = scores
            if scorer.oracle(tools):
                trace["oracle"] = True
        best = attempts[chosen]
        return Answer(
            text=best.text,
            answer=best.answer,
            candidates=tuple(attempts),
            scores=tuple(score for score in scores if score is not None) if scores and None not in scores else (),
            trace=trace,
        )

    async def _criticise(self, prompt: Prompt, latest: Candidate, tools: Tools, seed: int) -> str | None:
        if tools.spent():
            return None
        request = replace(_after(prompt, latest, self.critique or CRITIQUE), opening="", prefix=None, cue=None)
        sampling = replace(tools.sampling, temperature=self.temperature)
        try:
            (critique,) = await tools.engine.generate(request, sampling, seed=seed)
        except BudgetSpentError:
            return None
        return critique.text


def _after(prompt: Prompt, latest: Candidate, request: str) -> Prompt:
    """Return the prompt with the latest answer and a request behind it."""
    said = Message(role="assistant", content=prompt.begun + latest.text)
    return replace(prompt, messages=(*prompt.messages, said, Message(role="user", content=request)))
