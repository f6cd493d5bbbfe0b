"""Beam search over reasoning steps: sample several next steps of every beam, keep the best of all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.types import Answer, Example, Prompt
from ..stats.steps import Aggregation
from ._steps import Choose, Path, Search, wanted

__all__ = ["BeamSearch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearch:
    """Write replies step by step, keeping the few best-scored beginnings.

    B_{t+1} = top_w of the unfinished and finished { b + z_i : b ∈ B_t, z_i ~ p(· | x, b), i ≤ expand } by s(x, b + z),
    where w = width - the number of beams that have finished: a finished beam keeps its place and is not expanded again.

    A beam is finished when its turn ends; one that runs into the token limit is not, and is dropped. The first level draws
    width × expand steps from the prompt, the last allowed level draws the whole rest of the reply. Equal beams are merged
    (and counted) before they are scored. When none finishes, or the budget is spent before one does, the best unfinished
    one is returned without an answer.

    Args:
        width: how many beams are kept.
        expand: how many next steps are drawn of each.
        steps: how many steps a reply may have; the last one is all the rest of it.
        verifier: "likelihood" (length-normalised, of the whole beam), or the spec of a verifier of unfinished replies.
        aggregate: how a verifier's step scores become one: last, min, product or mean.
        choose: among the finished beams: best, or a vote of their answers, majority or weighted by score.
        separator: what ends a step; \\n is the end of a line.
        step_tokens: a step that is longer is continued as another one.
        temperature: above 0, else all next steps are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Snell et al. 2024, "Scaling LLM Test-Time Compute Optimally …" (arXiv 2408.03314), section 5.2; by likelihood:
    Xie et al. 2023, "Self-Evaluation Guided Beam Search for Reasoning" (arXiv 2305.00633).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Snell et al. 2024, arXiv 2408.03314, section 5.2"
    cost: ClassVar[str] = "at most steps × width × expand step generations (fewer as beams finish), each scored"
    fails: ClassVar[str] = "the score misjudges unfinished replies: all beams then follow the same wrong beginning"

    width: Annotated[int, Field(ge=1)] = 4
    expand: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] = 16
    verifier: str = "likelihood"
    aggregate: Aggregation = "last"
    choose: Choose = "best"
    separator: str = "\\n"
    step_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return wanted(self.verifier)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        search = Search(self, prompt, example, tools)
        beams: list[Path] = [Path()]
        finished: list[tuple[Path, float | None]] = []
        pruned, fallback = 0, None
        for step in range(self.steps):
            draws = self.expand if step else self.width * self.expand
            last = step == self.steps - 1
            grown = await asyncio.gather(*(search.grow(beam, range(draws), seed=seed, last=last) for beam in beams))
            paths = search.merged([path for paths in grown for path in paths])
            ranked = sorted(zip(paths, await search.score(paths), strict=True), key=lambda pair: _rank(pair[1]))
            if not ranked:
                break
            fallback = next((path for path, _ in ranked if not path.done), fallback)
            alive = [pair for pair in ranked if not pair[0].cut]
            kept = alive[: self.width - len(finished)]
            pruned += len(ranked) - len(kept)
            finished += [pair for pair in kept if pair[0].done]
            beams = [path for path, _ in kept if path.open]
            if not beams or search.spent:
                break
        return await search.answer(
            [path for path, _ in finished],
            [score for _, score in finished],
            choose=self.choose,
            seed=seed,
            otherwise=fallback,
            trace={"pruned": pruned},
        )


def _rank(score: float | None) -> tuple[bool, float]:
    """Sort the best first; what has no score last."""
    return (score is None, -(score or 0.0))
