"""Asks a model which of two replies is better, in both orders."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Engine, Task
from ..core.types import Completion, Example, Message, Prompt, Said, Sampling, Verdict
from ..stats.judging import counted
from ._labels import label_probabilities
from ._loaded import engine_of
from ._verdicts import last_line
from ._wording import fill, shown, unescaped
from .judge import CRITERIA

__all__ = ["PROMPT", "Pairwise"]

PROMPT = """Compare two responses to a question.

[Question]
{question}

[Response 1]
{first}

[Response 2]
{second}

[Criteria]
{criteria}

Which response is better? The order in which they are shown means nothing. {how}"""
_SAID: dict[str | None, Said] = {"1": "first", "2": "second", "tie": "tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """A model's preference between two replies, asked with each of them first; where the orders disagree it is a tie.

    The winner is the one that both orders prefer. `Verdict.flipped` says that they disagreed, `Verdict.said` what was
    preferred in each; `stats.judging.position_bias` makes flip rate and position bias of many, and `bias_of` of the counts
    in `tally`. A reply that cannot be read makes a tie and is counted as unparsed. Equal texts are a tie, unasked.

    With `read=logprobs` the verdict is the likelier of "1" and "2" as next words, and `Verdict.probability_a` the mean
    over both orders of the probability of `a` among them, in which a constant preference for one place cancels to first
    order; with `reason` they are the words behind a reasoning written greedily. With `samples` > 1 the probability is the
    share of so many verdicts sampled at temperature 1 (a tie counts half): for servers that give no log-probabilities.

    Sources: Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv 2306.05685), section 3.4 and figure 5; probabilities, both
    orders averaged, and reasoning first: Lee et al. 2023, "RLAIF" (arXiv 2309.00267).

    Args:
        model: the judge; default: the engine at hand.
        criteria: what counts; principles in words.
        reason: let it reason before the verdict.
        read: `text`: the last line "Verdict: 1", "2" or "tie" of what it writes; or `logprobs`.
        prompt: with the places {question}, {first}, {second}, {criteria} and {how}; a written \\n is a line break.
        max_tokens: of what it writes with `reason`.
        samples: verdicts drawn, with read=text; 1: one, greedily.
    """

    role: ClassVar[str] = "judge"

    task: Task
    model: str | None = None
    criteria: str = CRITERIA
    reason: bool = False
    read: Literal["text", "logprobs"] = "text"
    prompt: str = PROMPT
    max_tokens: Annotated[int, Field(ge=1)] = 512
    samples: Annotated[int, Field(ge=1)] = 1
    engine: Engine | None = None
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        if "{first}" not in self.prompt or "{second}" not in self.prompt:
            raise ConfigError("judge 'pairwise': its prompt must have the places {first} and {second}")
        if self.samples > 1 and self.read == "logprobs":
            raise ConfigError("judge 'pairwise': read=logprobs needs no sampled verdicts: leave samples out")

    @property
    def needs(self) -> frozenset[str]:
        """What the judge's engine must be able to do."""
        return frozenset({"score", "prefix"}) if self.read == "logprobs" else frozenset()

    async def __call__(self, example: Example, a: str, b: str) -> Verdict:
        """Compare two texts."""
        if a == b:
            return Verdict(winner="tie", probability_a=0.5 if self.read == "logprobs" else None)
        engine = engine_of(self.engine, self.model, "judge 'pairwise'")
        (with_a_first, p_a, wrote_a), (with_b_first, p_b, wrote_b) = await asyncio.gather(
            self._ask(engine, example, a, b), self._ask(engine, example, b, a)
        )
        verdict = replace(decided(with_a_first, with_b_first), wrote=(wrote_a, wrote_b))
        self.tally.update(counted(verdict.said))
        if p_a is None or p_b is None:
            return verdict
        return replace(verdict, probability_a=(p_a + (1 - p_b)) / 2, p_first=(p_a, p_b))

    def asked(self, example: Example, first: str, second: str) -> Prompt:
        """Return what the judge is asked, with the two replies in this order."""
        if self.read == "logprobs" and self.reason:
            how = "Compare them in a few sentences, before you give a verdict."
        elif self.reason:
            how = 'Compare them in a few sentences, then finish with a line "Verdict: 1", "Verdict: 2" or "Verdict: tie".'
        else:
            how = 'Reply with nothing but a line "Verdict: 1", "Verdict: 2" or "Verdict: tie".'
        parts = {"question": shown(self.task, example), "criteria": unescaped(self.criteria)}
        text = fill(unescaped(self.prompt), "judge 'pairwise'", how=how, first=first.strip(), second=second.strip(), **parts)
        return Prompt(messages=(Message(role="user", content=text),))

    async def _ask(self, engine: Engine, example: Example, first: str, second: str) -> tuple[Said, float | None, str]:
        """Return which of the two shown it prefers, the probability of the first, and what it wrote."""
        prompt = self.asked(example, first, second)
        if self.read == "logprobs":
            return await self._likelier(engine, prompt)
        sampling = Sampling(temperature=0.0 if self.samples == 1 else 1.0, max_tokens=self.max_tokens if self.reason else 16)
        replies = await engine.generate(prompt, sampling, seed=0, samples=range(self.samples))
        said = [self._read(reply) for reply in replies]
        if self.samples == 1:
            return said[0], None, replies[0].text
        points = [{"first": 1.0, "tie": 0.5, "second": 0.0}[one] for one in said if one != "unparsed"]
        self.tally["unparsed_verdicts"] += len(said) - len(points)
        if not points:
            return "unparsed", None, replies[0].text
        p_first = math.fsum(points) / len(points)
        return _leaning(p_first), p_first, replies[0].text

    async def _likelier(self, engine: Engine, prompt: Prompt) -> tuple[Said, float | None, str]:
        """Take the verdict's probability from the next words, behind a reasoning if there is one."""
        opened, wrote = Prompt(messages=prompt.messages, prefix="Verdict:"), ""
        if self.reason:
            (reasoning,) = await engine.generate(prompt, Sampling(max_tokens=self.max_tokens), seed=0)
            self.tally["cut"] += reasoning.finish == "length"
            wrote = reasoning.text
            written = reasoning if reasoning.tokens or not wrote else wrote
            opened = Prompt(messages=prompt.messages, prefix=(written, "\nVerdict:"))
        (p_first, _), together = await label_probabilities(engine, opened, [" 1", " 2"])
        if together < 0.5:
            self.tally["off_label"] += 1
        return _leaning(p_first), p_first, wrote

    def _read(self, reply: Completion) -> Said:
        cut = self.reason and reply.finish == "length"
        return "unparsed" if cut else _SAID.get(last_line(reply.text, "verdict"), "unparsed")


def _leaning(p_first: float) -> Said:
    return "first" if p_first > 0.5 else "second" if p_first < 0.5 else "tie"


def decided(with_a_first: Said, with_b_first: Said) -> Verdict:
    """Return the verdict of two orders: a winner only where both prefer the same text."""
    said = (with_a_first, with_b_first)
    if said == ("first", "second"):
        return Verdict(winner="a", said=said)
    if said == ("second", "first"):
        return Verdict(winner="b", said=said)
    return Verdict(winner="tie", flipped="unparsed" not in said and said != ("tie", "tie"), said=said)
