"""Asks a model to rate a reply from 1 to 10."""

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
from ..core.types import Example, Message, Prompt, Sampling, Score
from ._labels import label_probabilities
from ._loaded import engine_of
from ._verdicts import last_line
from ._wording import fill, shown, unescaped

__all__ = ["Judge"]

CRITERIA = "Is the response correct, and does it do what was asked? A wrong result outweighs a good style or a great length."
PROMPT = """Rate a response to a question.

[Question]
{question}

[Response]
{response}

[Criteria]
{criteria}

Rate the response from 1 (worst) to {top} (best). {how}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A model's rating r of the reply among 1..top, as (r − 1)/(top − 1) in [0, 1].

    `read=text`: the last line "Rating: r" of what it writes; a reply without one that can be read, or cut by the token
    limit before the end of its reasoning, gives no score (nan), and `tally["unparsed"]` counts it. `read=logprobs`: the
    expectation Σ_r r p(r) over the ratings as next words, finer than one rating and without ties; `tally["off_label"]`
    counts texts at which the model gave all ratings together less than half of its probability.

    Sources: Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv 2306.05685), section 3.1 and figure 6; the expectation:
    Liu et al. 2023, "G-Eval" (arXiv 2303.16634), equation 1.

    Args:
        model: the judge; default: the model that answers.
        criteria: what counts; principles in words.
        top: the best rating.
        reason: let it reason before the rating.
        read: `text` or `logprobs`.
        prompt: with the places {question}, {response}, {criteria}, {top} and {how}; a written \\n is a line break.
        max_tokens: of what it writes with `reason`.
    """

    oracle: ClassVar[bool] = False
    role: ClassVar[str] = "judge"

    task: Task
    model: str | None = None
    criteria: str = CRITERIA
    top: Annotated[int, Field(ge=2, le=100)] = 10
    reason: bool = False
    read: Literal["text", "logprobs"] = "text"
    prompt: str = PROMPT
    max_tokens: Annotated[int, Field(ge=1)] = 512
    engine: Engine | None = None
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        if "{response}" not in self.prompt:
            raise ConfigError("verifier 'judge': its prompt must have the place {response}")
        if self.reason and self.read == "logprobs":
            raise ConfigError("verifier 'judge': read=logprobs takes the rating as the next words: set reason=false")

    @property
    def needs(self) -> frozenset[str]:
        """What the judge's engine must be able to do."""
        return frozenset({"score", "prefix"}) if self.read == "logprobs" else frozenset()

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Rate each text; equal ones are asked once."""
        engine = engine_of(self.engine, self.model, "verifier 'judge'")
        different = list(dict.fromkeys(texts))
        rate = self._expected if self.read == "logprobs" else self._written
        rated = dict(
            zip(different, await asyncio.gather(*(rate(engine, self._asked(example, t)) for t in different)), strict=True)
        )
        self.tally["texts"] += len(texts)
        for text in texts:
            self.tally[rated[text][1]] += 1
        return [Score(value=(rated[text][0] - 1) / (self.top - 1)) for text in texts]

    def _asked(self, example: Example, text: str) -> Prompt:
        if self.reason:
            how = 'Think it over in a few sentences, then finish with a line "Rating: r", where r is the number.'
        else:
            how = 'Reply with nothing but a line "Rating: r", where r is the number.'
        parts = {"question": shown(self.task, example), "response": text.strip(), "criteria": unescaped(self.criteria)}
        asked = fill(unescaped(self.prompt), "verifier 'judge'", top=str(self.top), how=how, **parts)
        return Prompt(messages=(Message(role="user", content=asked),))

    async def _written(self, engine: Engine, prompt: Prompt) -> tuple[float, str]:
        (reply,) = await engine.generate(prompt, Sampling(max_tokens=self.max_tokens if self.reason else 16), seed=0)
        said = None if self.reason and reply.finish == "length" else last_line(reply.text, "rating")
        number, _, of = (said or "").partition("/")
        try:
            rating = float(number)
            if 1 <= rating <= self.top and of.strip() in ("", str(self.top)):
                return rating, "rated"
        except ValueError:
            pass
        return math.nan, "unparsed"

    async def _expected(self, engine: Engine, prompt: Prompt) -> tuple[float, str]:
        opened = Prompt(messages=prompt.messages, prefix="Rating:")
        ratings = range(1, self.top + 1)
        found, together = await label_probabilities(engine, opened, [f" {rating}" for rating in ratings])
        expected = math.fsum(rating * p for rating, p in zip(ratings, found, strict=True))
        return expected, "rated" if together >= 0.5 else "off_label"
