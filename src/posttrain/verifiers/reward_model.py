"""Scores a whole reply with a reward model: a sequence-classification model trained on preferences or on verdicts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError, ModelError
from ..core.protocols import Engine, Task
from ..core.types import Example, Message, Prompt, Score
from ..data.chat import render_ids
from ..engines.rewards import Laid, RewardEngine
from ..tasks.wording import conversation
from ._loaded import once, stamp
from ._numbers import label_number, log_odds, sigmoid

if TYPE_CHECKING:
    from ..models.scorers import LoadedScorer

__all__ = ["RewardModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """An outcome reward model's opinion of the whole reply.

    One label: s = w·h_T, the hidden state at the last token of the conversation, question and reply in the model's own
    chat template (a Bradley-Terry model's scale: any real number). More labels: the log-odds z_p − log Σ_{k≠p} exp z_k of
    the positive one. `output=probability` is σ(s): with more labels the softmax probability of the positive one.

    Sources: Cobbe et al. 2021 (arXiv 2110.14168), section 4.2; Ouyang et al. 2022 (arXiv 2203.02155), section 3.5.

    Args:
        model: a sequence-classification folder (safetensors), or a hub id.
        output: `logit`, `probability`, or `auto`: the logit of a single label, the probability of one of several.
        label: the positive label by name or number, where there are several; needed above two (of two it is number 1).
        chat_template: a Jinja file, in place of the model's own template or where it has none.
        pair: question and reply as the tokenizer's two segments, for encoders without a chat template (BERT, DeBERTa).
        end: end the conversation with the end-of-text token where the template does not, as TRL's trainer does.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto, float32, bfloat16, float16.
        batch_tokens: tokens in a batch at most, padding included.
    """

    oracle: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    role: ClassVar[str] = "verifier"

    task: Task
    model: str
    output: Literal["auto", "logit", "probability"] = "auto"
    label: int | str | None = None
    chat_template: Path | None = None
    pair: bool = False
    end: bool = False
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    engine: Engine | None = None

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        engine = self.engine or self.open()
        prompt = Prompt(messages=conversation(self.task, example))
        scored = await asyncio.gather(*(engine.score(prompt, text) for text in texts))
        return [Score(value=completion.rewards[0] if completion.rewards else math.nan) for completion in scored]

    def open(self) -> Engine:
        """Load the model, or return what was loaded before with the same settings."""
        from ..models.scorers import load_classifier

        if self.pair and (self.chat_template or self.end):
            raise ConfigError("verifier 'reward_model': pair=true uses no chat template: leave chat_template and end out")
        files = stamp(self.model)
        loading = (files, self.device, self.dtype, self.chat_template)
        reading = (self.output, self.label, self.pair, self.end, self.batch_tokens)

        def make() -> Engine:
            scorer = once(
                ("sequence", *loading),
                lambda: load_classifier(
                    self.model, "sequence", device=self.device, dtype=self.dtype, chat_template=self.chat_template
                ),
            )
            return RewardEngine(scorer, self._lay_out(scorer), self._value(scorer), batch_tokens=self.batch_tokens)

        return once(("reward_model", *loading, *reading), make)

    def _lay_out(self, scorer: LoadedScorer) -> Callable[[Prompt, str], Laid]:
        tokenizer = scorer.tokenizer
        if not self.pair and not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"reward model '{self.model}' has no chat template: name the one it was trained with, "
                "chat_template=FILE, or set pair=true if it is an encoder that takes question and reply as two segments"
            )

        def lay_out(prompt: Prompt, text: str) -> Laid:
            if self.pair:
                question = "\n\n".join(message.content for message in prompt.messages)
                encoded = tokenizer(question, text)
                types = encoded.get("token_type_ids")
                ids = tuple(encoded["input_ids"])
                return Laid(ids=ids, positions=(len(ids) - 1,), types=None if types is None else tuple(types))
            turns = [*prompt.messages, Message(role="assistant", content=text)]
            ids = tuple(render_ids(tokenizer, turns))
            if self.end and ids[-1] != tokenizer.eos_token_id:
                ids += (tokenizer.eos_token_id,)
            return Laid(ids=ids, positions=(len(ids) - 1,))

        return lay_out

    def _value(self, scorer: LoadedScorer) -> Callable[[Sequence[float]], float]:
        if len(scorer.labels) == 1:
            if self.label is not None:
                raise ConfigError(f"verifier 'reward_model': '{self.model}' has a single output: leave label out")
            return (lambda z: sigmoid(z[0])) if self.output == "probability" else (lambda z: z[0])
        positive = label_number(scorer.labels, self.label, f"verifier 'reward_model': '{self.model}'")
        if self.output == "logit":
            return lambda z: log_odds(z, positive)
        return lambda z: sigmoid(log_odds(z, positive))
