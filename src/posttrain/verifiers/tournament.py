"""Scores n replies by comparing them in pairs."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Engine, Task
from ..core.seeds import rng
from ..core.types import Example, Score, Verdict
from .judge import CRITERIA
from .pairwise import PROMPT, Pairwise

__all__ = ["Tournament", "schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tournament:
    """The share of comparisons a reply wins against the others, a tie counting half; each pair is asked in both orders.

    s_i = (1/|O_i|) Σ_{j ∈ O_i} (1[i beats j] + ½ 1[tie]), O_i all others (`form=all`, n(n − 1) calls), or the opponents
    of `rounds` rounds, in each of which every reply meets one it has not met (n calls a round). `form=knockout`: pairs in
    random order, the winner goes on (of a tie the one that the judge finds likelier, else the first of them): s is the
    share of rounds survived, for 2(n − 1) calls. Equal texts are one contestant, and score the same. A text alone scores
    ½.

    `tally` counts what `stats.judging.bias_of` makes flip rate and position bias of, over all pairs.

    Sources: Zheng et al. 2023 (arXiv 2306.05685), section 3; knockout: Liu et al. 2025, "PairJudge RM" (arXiv 2501.13007).

    Args:
        form: `all` or `knockout`.
        rounds: with form=all, only that many rounds; default: every pair.
        seed: of the order in which they meet.
        model: the judge; default: the model that answers.
        criteria: what counts; principles in words.
        reason: let it reason before the verdict.
        read: `text` or `logprobs`; see `pairwise`.
        prompt: see `pairwise`.
        max_tokens: of what the judge writes with `reason`.
    """

    oracle: ClassVar[bool] = False
    role: ClassVar[str] = "judge"
    relative: ClassVar[bool] = True  # a text's score depends on the others

    task: Task
    form: Literal["all", "knockout"] = "all"
    rounds: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    model: str | None = None
    criteria: str = CRITERIA
    reason: bool = False
    read: Literal["text", "logprobs"] = "text"
    prompt: str = PROMPT
    max_tokens: Annotated[int, Field(ge=1)] = 512
    engine: Engine | None = None
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.form == "knockout" and self.rounds is not None:
            raise ConfigError("verifier 'tournament': a knockout has as many rounds as it needs: leave rounds out")
        self._judge()  # its settings are checked now

    @property
    def needs(self) -> frozenset[str]:
        """What the judge's engine must be able to do."""
        return self._judge().needs

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text against the others."""
        contestants = list(dict.fromkeys(texts))
        if len(contestants) == 1:
            return [Score(value=0.5) for _ in texts]
        judge = self._judge()
        order = rng(self.seed, "tournament", example.id).sample(range(len(contestants)), len(contestants))
        run = self._knockout if self.form == "knockout" else self._all
        scores = dict(zip(contestants, await run(judge, example, contestants, order), strict=True))
        self.tally.update(judge.tally)
        return [Score(value=scores[text]) for text in texts]

    async def _all(self, judge: Pairwise, example: Example, texts: Sequence[str], order: Sequence[int]) -> list[float]:
        pairs = [pair for round_ in schedule(order)[: self.rounds] for pair in round_]
        verdicts = await asyncio.gather(*(judge(example, texts[i], texts[j]) for i, j in pairs))
        won: list[list[float]] = [[] for _ in texts]
        for (i, j), verdict in zip(pairs, verdicts, strict=True):
            points = {"a": 1.0, "b": 0.0, "tie": 0.5}[verdict.winner]
            won[i].append(points)
            won[j].append(1 - points)
        return [math.fsum(points) / len(points) if points else 0.5 for points in won]

    async def _knockout(self, judge: Pairwise, example: Example, texts: Sequence[str], order: Sequence[int]) -> list[float]:
        left, survived, rounds = list(order), [0] * len(texts), 0
        while len(left) > 1:
            pairs = list(zip(left[::2], left[1::2], strict=False))
            verdicts = await asyncio.gather(*(judge(example, texts[i], texts[j]) for i, j in pairs))
            bye = left[len(pairs) * 2 :]
            left = [i if _first_goes_on(verdict) else j for (i, j), verdict in zip(pairs, verdicts, strict=True)] + bye
            rounds += 1
            for i in left:
                survived[i] = rounds
        return [count / rounds for count in survived]

    def _judge(self) -> Pairwise:
        return Pairwise(
            task=self.task,
            engine=self.engine,
            model=self.model,
            criteria=self.criteria,
            reason=self.reason,
            read=self.read,
            prompt=self.prompt,
            max_tokens=self.max_tokens,
        )


def _first_goes_on(verdict: Verdict) -> bool:
    if verdict.winner != "tie":
        return verdict.winner == "a"
    return verdict.probability_a is None or verdict.probability_a >= 0.5


def schedule(order: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return the rounds of a round-robin: in each all meet someone (of an odd number one rests), over all everyone once.

    The circle method: one stays, the others move on by one place a round.
    """
    ring: list[int | None] = [*order, *([None] * (len(order) % 2))]
    rounds = []
    for _ in range(len(ring) - 1):
        meet = [(ring[k], ring[-1 - k]) for k in range(len(ring) // 2)]
        rounds.append([(i, j) for i, j in meet if i is not None and j is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds
