"""Asks a model whether a proposed answer is true, and takes the probability of the one word."""

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
from ..core.seeds import derive
from ..core.types import Example, Message, Prompt, Sampling, Score
from ..tasks.wording import conversation
from ._labels import label_probabilities
from ._loaded import engine_of
from ._wording import fill, shown, unescaped

__all__ = ["PTrue"]

PROMPT = """Question: {question}
{ideas}Proposed Answer: {answer}
Is the proposed answer:
 (A) True
 (B) False"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrue:
    """The probability a model gives to "True" when it is asked whether the proposed answer is true.

    s = P(yes | prompt) / (P(yes | prompt) + P(no | prompt)), from the log-probabilities of the two labels as next words.

    With `ideas` > 0 the prompt first shows that many samples of the model's own at temperature 1, which the paper finds to
    help much. `tally["off_label"]` counts texts at which the model gave the two labels together less than half of its
    probability: it would have said something else, and s is worth little then.

    Source: Kadavath et al. 2022, "Language Models (Mostly) Know What They Know" (arXiv 2207.05221), section 4;
    ideas: section 4.2.

    Args:
        model: the model to ask; default: the one that answers.
        prompt: with the places {question}, {answer} and {ideas}; a written \\n is a line break.
        opening: how the reply begins, before the label.
        yes: the label of a true answer, with the space before it.
        no: that of a false one.
        show: `text`: the whole reply is the proposed answer; `answer`: only the answer read from it.
        ideas: samples shown as brainstormed ideas; they are drawn once an example, and charged to the verifier.
        max_tokens: the longest of these samples; default: the task's.
        seed: theirs.
    """

    oracle: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"score", "prefix"})
    role: ClassVar[str] = "verifier"

    task: Task
    model: str | None = None
    prompt: str = PROMPT
    opening: str = "The proposed answer is:"
    yes: str = " (A"
    no: str = " (B"
    show: Literal["text", "answer"] = "text"
    ideas: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    engine: Engine | None = None
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        if "{answer}" not in self.prompt:
            raise ConfigError("verifier 'p_true': its prompt must have the place {answer}")
        if self.ideas and "{ideas}" not in self.prompt:
            raise ConfigError("verifier 'p_true': with ideas its prompt must have the place {ideas}")
        if not self.yes or not self.no or self.yes == self.no:
            raise ConfigError("verifier 'p_true': yes and no must be two different labels")

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text; with show=answer, one without a readable answer has no score (nan)."""
        engine = engine_of(self.engine, self.model, "verifier 'p_true'")
        ideas = await self._ideas(engine, example)
        proposed = [text if self.show == "text" else self.task.extract(text) for text in texts]
        different = list(dict.fromkeys(answer for answer in proposed if answer is not None))
        asked = await asyncio.gather(*(self._ask(engine, example, answer, ideas) for answer in different))
        found: dict[str | None, tuple[float, float]] = dict(zip(different, asked, strict=True))
        found[None] = (math.nan, 1.0)
        self.tally["texts"] += len(texts)
        self.tally["unparsed"] += proposed.count(None)
        self.tally["off_label"] += sum(found[answer][1] < 0.5 for answer in proposed)
        return [Score(value=found[answer][0]) for answer in proposed]

    async def _ask(self, engine: Engine, example: Example, answer: str, ideas: str) -> tuple[float, float]:
        """Return P(True) among the two labels, and the probability of both together."""
        text = fill(
            unescaped(self.prompt),
            "verifier 'p_true'",
            question=shown(self.task, example),
            answer=answer.strip(),
            ideas=ideas,
        )
        prompt = Prompt(messages=(Message(role="user", content=text),), prefix=self.opening)
        (true, _), together = await label_probabilities(engine, prompt, [self.yes, self.no])
        return true, together

    async def _ideas(self, engine: Engine, example: Example) -> str:
        if not self.ideas:
            return ""
        drawn = await engine.generate(
            Prompt(messages=conversation(self.task, example)),
            Sampling(temperature=1.0, max_tokens=self.max_tokens or self.task.max_tokens),
            seed=derive(self.seed, "p_true", example.id),
            samples=range(self.ideas),
        )
        texts = [completion.text if self.show == "text" else self.task.extract(completion.text) for completion in drawn]
        lines = "\n".join(text.strip() for text in texts if text is not None)
        return f"Here are some brainstormed ideas:\n{lines}\n"
