"""Diverse verifier tree search (DVTS): independent subtrees, each of which follows its best next step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Example, Prompt
from ..stats.steps import Aggregation
from ._steps import Choose, Path, Search, wanted

__all__ = ["DiverseTreeSearch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiverseTreeSearch:
    """Grow n subtrees that never compete with each other, each greedily by score; one reply each, then a vote.

    In subtree i: b_{t+1} = argmax_{j ≤ width} s(x, b_t + z_j), z_j ~ p(· | x, b_t), until its turn ends.

    Beam search puts all its width behind the highest scores, which are often near-copies of one beginning; subtrees stay
    apart. Subtree i is the same whatever n is. Each gives one candidate: its finished reply. A subtree whose every next
    step runs into the token limit gives none; when none has one, the unfinished reply with the best score is returned
    without an answer. The last allowed step is the whole rest of the reply.

    Args:
        n: how many subtrees.
        width: how many next steps are drawn in each.
        steps: how many steps a reply may have; the last one is all the rest of it.
        verifier: "likelihood" (length-normalised), or the spec of a verifier of unfinished replies.
        aggregate: how a verifier's step scores become one: last, min, product or mean.
        choose: among the n replies: a vote of their answers, weighted by score or by majority, or the best.
        separator: what ends a step; \\n is the end of a line.
        step_tokens: a step that is longer is continued as another one.
        temperature: above 0, else all next steps are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models" (Hugging Face), DVTS.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Beeching, Tunstall, Rush 2024, Scaling test-time compute with open models (DVTS)"
    cost: ClassVar[str] = "at most steps × n × width step generations, each scored"
    fails: ClassVar[str] = "the score misjudges steps; or the budget is small, and beam search uses it better"

    n: Annotated[int, Field(ge=1)] = 4
    width: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] = 16
    verifier: str = "likelihood"
    aggregate: Aggregation = "last"
    choose: Choose = "weighted"
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
        # One call for all first steps: the prompt is read, and charged, once. Subtree i owns its slice of the samples.
        first = await search.grow(Path(), range(self.n * self.width), seed=seed, last=self.steps == 1)
        slices = [first[i * self.width : (i + 1) * self.width] for i in range(self.n)]
        subtrees = (self._follow(search, drawn, derive(seed, "subtree", i)) for i, drawn in enumerate(slices))
        ends = await asyncio.gather(*subtrees)
        grown = [end for end in ends if end is not None]
        finished = [(path, score) for path, score in grown if path.done]
        best = max(grown, key=lambda pair: _value(pair[1]), default=None)
        return await search.answer(
            [path for path, _ in finished],
            [score for _, score in finished],
            choose=self.choose,
            seed=seed,
            otherwise=best[0] if best is not None else None,
            trace={"subtrees": [None if end is None else end[0].done for end in ends]},
        )

    async def _follow(self, search: Search, drawn: Sequence[Path], seed: int) -> tuple[Path, float | None] | None:
        """Follow the best step of each level to the end of one subtree; None if the budget never let it begin."""
        at = None
        for step in range(1, self.steps + 1):
            if not drawn:
                break
            paths = search.merged(drawn)
            scores = await search.score(paths)
            # A path that ran into the token limit leads nowhere: it is followed only when all have.
            at = max(zip(paths, scores, strict=True), key=lambda pair: (not pair[0].cut, _value(pair[1])))
            if not at[0].open or step == self.steps or search.spent:
                break
            drawn = await search.grow(at[0], range(self.width), seed=seed, last=step == self.steps - 1)
        return at


def _value(score: float | None) -> float:
    return float("-inf") if score is None else score
