"""Scores a reply, finished or not, with a value model: the return that the policy can expect from here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Engine, Task
from ..core.types import Example, Prompt, Score
from ..data.chat import render_prompt
from ..data.steps import step_starts
from ..engines.rewards import Laid, RewardEngine
from ..stats.steps import Aggregation, aggregate
from ..tasks.wording import conversation
from ._loaded import once, stamp
from ._wording import unescaped

if TYPE_CHECKING:
    from ..models.scorers import LoadedScorer

__all__ = ["Value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value model's V at the end of each step, as a raw number, and one number of them for the whole text.

    s_k = V(x, steps 1..k), read at the last token of step k, on the scale of the rewards it was trained on.

    The text is laid out as the policy wrote it in training: behind the question in the chat template, tokenised as one. The
    separator behind a step belongs to the next one. One forward pass a text, whatever the number of steps.

    Source: Wang et al. 2024, OREO (arXiv 2412.16145): step-level beam search guided by the value model.

    Args:
        model: a token-classification folder with one label, as `oreo` saves it in `checkpoint/value`; or a hub id.
        separator: what splits a text into steps; a written \\n is a line break.
        chat_template: a Jinja file, in place of the model's own template or where it has none.
        aggregate: `last`, `min`, `product` or `mean` of the steps; see `stats.steps.aggregate`.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto, float32, bfloat16, float16.
        batch_tokens: tokens in a batch at most, padding included.
    """

    oracle: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    role: ClassVar[str] = "verifier"

    task: Task
    model: str
    separator: Annotated[str, Field(min_length=1)] = "\\n"
    chat_template: Path | None = None
    aggregate: Aggregation = "last"
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    engine: Engine | None = None

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text and its steps; an empty one has no score."""
        engine = self.engine or self.open()
        prompt = Prompt(messages=conversation(self.task, example))
        scored = await asyncio.gather(*(engine.score(prompt, text) for text in texts))
        steps = [completion.rewards or () for completion in scored]
        return [Score(value=aggregate(values, self.aggregate) if values else math.nan, steps=values) for values in steps]

    def open(self) -> Engine:
        """Load the model, or return what was loaded before with the same settings."""
        from ..models.scorers import load_classifier

        loading = (stamp(self.model), self.device, self.dtype, self.chat_template)

        def make() -> Engine:
            scorer = once(
                ("token", *loading),
                lambda: load_classifier(
                    self.model, "token", device=self.device, dtype=self.dtype, chat_template=self.chat_template
                ),
            )
            if len(scorer.labels) != 1:
                raise ConfigError(
                    f"verifier 'value': '{self.model}' has {len(scorer.labels)} labels, and a value model has one: use "
                    "process_reward:style=token"
                )
            return RewardEngine(scorer, self._lay_out(scorer), lambda z: z[0], batch_tokens=self.batch_tokens)

        return once(("value", *loading, self.separator, self.batch_tokens), make)

    def _lay_out(self, scorer: LoadedScorer) -> Callable[[Prompt, str], Laid]:
        tokenizer, separator = scorer.tokenizer, unescaped(self.separator)

        def lay_out(prompt: Prompt, text: str) -> Laid:
            text = text.rstrip()  # a separator at the end begins no step
            if not text:
                return Laid(ids=(), positions=())
            begun = render_prompt(tokenizer, prompt.messages)
            ids = render_prompt(tokenizer, prompt.messages, prefix=text)
            if ids[: len(begun)] != begun:  # the seam must not be merged away: as in training
                ids = begun + tokenizer(text, add_special_tokens=False)["input_ids"]
            starts = step_starts(tokenizer, ids[len(begun) :], separator=separator, closed=False)
            return Laid(ids=tuple(ids), positions=(*(len(begun) + start - 1 for start in starts[1:]), len(ids) - 1))

        return lay_out
