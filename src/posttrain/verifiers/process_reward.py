"""Scores every step of a reasoning with a process reward model, and the reply by its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError, ModelError
from ..core.protocols import Engine, Task
from ..core.types import Example, Message, Prompt, Score
from ..data.chat import render_text
from ..data.steps import lay_out_steps
from ..engines.rewards import Laid, RewardEngine
from ..stats.steps import Aggregation, aggregate
from ..tasks.wording import conversation
from ._loaded import once, stamp
from ._numbers import label_number, log_odds, sigmoid
from ._wording import unescaped

if TYPE_CHECKING:
    from ..models.scorers import LoadedScorer

__all__ = ["ProcessReward", "split_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessReward:
    """A process reward model's probability that each step is right, and one number of them for the whole text.

    s_k = p(step k good | x, steps 1..k), and their aggregate.

    One forward pass a text, whatever the number of steps. Empty steps are never scored: a text scores the same with and
    without a separator at its end. A text without any step scores 0.

    Sources: Lightman et al. 2023 (arXiv 2305.20050), section 2; `tag`: Wang et al. 2023, "Math-Shepherd" (arXiv
    2312.08935); `turns`: Xiong et al. 2024, "An Implementation of Generative PRM" (RLHFlow); `token`: Zhang
    et al. 2025 (arXiv 2501.07301), and TRL's PRM trainer.

    Args:
        model: the model's folder (safetensors) or hub id; a causal language model for `tag` and `turns`.
        style: `tag`: a tag follows each step ("step ки"), and at its last token softmax(z_good, z_bad) is read; `turns`:
            each step is a user's turn answered by the good verdict, read where that is predicted; `token`: a
            token-classification model, read at the last token of the tag that follows each step.
        separator: what splits a text into steps; a written \\n is a line break.
        tag: what follows each step; default: " ки" for `tag`, a line break for `token` (TRL's; Qwen's is <extra_0>).
        good: the verdict token for a right step (`tag`, `turns`).
        bad: the one for a wrong step.
        label: the label for a right step by name or number (`token`; of two it is number 1).
        chat: the question in the model's chat template; false: as plain text before the steps (Math-Shepherd, TRL).
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
    style: Literal["tag", "turns", "token"]
    separator: Annotated[str, Field(min_length=1)] = "\\n"
    tag: Annotated[str, Field(min_length=1)] | None = None
    good: str = "+"
    bad: str = "-"
    label: int | str | None = None
    chat: bool = True
    chat_template: Path | None = None
    aggregate: Aggregation = "last"
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    engine: Engine | None = None

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text and its steps."""
        engine = self.engine or self.open()
        prompt = Prompt(messages=conversation(self.task, example))
        scored = await asyncio.gather(*(engine.score(prompt, text) for text in texts))
        steps = [completion.rewards or () for completion in scored]
        return [Score(value=aggregate(values, self.aggregate), steps=values) for values in steps]

    def open(self) -> Engine:
        """Load the model, or return what was loaded before with the same settings."""
        from ..models.scorers import load_classifier, load_verdicts

        if self.style == "turns" and (self.tag is not None or not self.chat):
            raise ConfigError(
                "verifier 'process_reward': style=turns is a conversation without tags: leave tag and chat out"
            )
        if self.style != "token" and self.label is not None:
            raise ConfigError(f"verifier 'process_reward': style={self.style} reads good and bad: leave label out")
        files = stamp(self.model)
        loading = (
            files,
            self.device,
            self.dtype,
            self.chat_template,
            *(() if self.style == "token" else (self.good, self.bad)),
        )
        reading = (self.style, self.separator, self.tag, self.label, self.chat, self.batch_tokens)

        def load() -> LoadedScorer:
            where: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "chat_template": self.chat_template}
            if self.style == "token":
                return load_classifier(self.model, "token", **where)
            return load_verdicts(self.model, [self.good, self.bad], **where)

        def make() -> Engine:
            scorer = once(("token" if self.style == "token" else "verdicts", *loading), load)
            good = 0
            if self.style == "token":
                good = label_number(scorer.labels, self.label, f"verifier 'process_reward': '{self.model}'")
            lay_out = {"tag": self._tagged, "turns": self._in_turns, "token": self._in_pieces}[self.style](scorer.tokenizer)
            return RewardEngine(scorer, lay_out, lambda z: sigmoid(log_odds(z, good)), batch_tokens=self.batch_tokens)

        return once(("process_reward", *loading, *reading), make)

    def _tagged(self, tokenizer: Any) -> Callable[[Prompt, str], Laid]:
        """Lay out `question step ки⏎step ки`, tokenised as one text; read at the token that ends each tag."""
        tag = unescaped(self.tag or " ки")

        def lay_out(prompt: Prompt, text: str) -> Laid:
            head = self._head(tokenizer, prompt)
            whole, ends = head, []
            for k, step in enumerate(split_steps(text, self.separator)):
                whole += ("\n" if k else "") + step + tag
                ends.append(len(whole))
            encoded = tokenizer(whole, add_special_tokens=not self.chat, return_offsets_mapping=True)
            closing = {end: at for at, (start, end) in enumerate(encoded["offset_mapping"]) if start < end}
            for end in ends:
                if end not in closing:
                    raise ModelError(
                        f"verifier 'process_reward': the tokenizer of '{self.model}' merges the tag {tag!r} with what "
                        "follows it: set tag to the one the model was trained with"
                    )
            return Laid(ids=tuple(encoded["input_ids"]), positions=tuple(closing[end] for end in ends))

        return lay_out

    def _in_turns(self, tokenizer: Any) -> Callable[[Prompt, str], Laid]:
        """Lay out user: question step, assistant: +, user: step, assistant: +, …; read at the token before each +."""

        def lay_out(prompt: Prompt, text: str) -> Laid:
            turns, starts = list(prompt.messages), []
            for k, step in enumerate(split_steps(text, self.separator)):
                if k == 0:
                    turns[-1] = replace(turns[-1], content=f"{turns[-1].content} {step}")
                else:
                    turns.append(Message(role="user", content=step))
                starts.append(render_text(tokenizer, turns, generation_prompt=True))
                turns.append(Message(role="assistant", content=self.good))
            if not starts:
                return Laid(ids=(), positions=())
            whole = render_text(tokenizer, turns, generation_prompt=False)
            encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            opening = {start: at for at, (start, end) in enumerate(encoded["offset_mapping"]) if start < end}
            positions = []
            for start in starts:
                at = opening.get(len(start), 0)
                if not whole.startswith(start + self.good) or at == 0:
                    raise ModelError(
                        f"verifier 'process_reward': the chat template of '{self.model}' does not put a verdict "
                        f"{self.good!r} right after what opens the assistant's turn, as style=turns needs"
                    )
                positions.append(at - 1)
            return Laid(ids=tuple(encoded["input_ids"]), positions=tuple(positions))

        return lay_out

    def _in_pieces(self, tokenizer: Any) -> Callable[[Prompt, str], Laid]:
        """Lay out question, step, tag, step, tag, …, each tokenised by itself; read at each tag's last token."""
        tag = unescaped(self.tag or "\n")

        def lay_out(prompt: Prompt, text: str) -> Laid:
            steps = split_steps(text, self.separator)
            ids, positions = lay_out_steps(tokenizer, prompt.messages, steps, tag=tag, chat=self.chat)
            return Laid(ids=tuple(ids), positions=tuple(positions))

        return lay_out

    def _head(self, tokenizer: Any, prompt: Prompt) -> str:
        return render_text(tokenizer, prompt.messages, generation_prompt=True) if self.chat else _plain(prompt) + " "


def _plain(prompt: Prompt) -> str:
    return "\n\n".join(message.content for message in prompt.messages)


def split_steps(text: str, separator: str) -> list[str]:
    """Return the steps of a text without the spaces around them; empty ones are none."""
    return [step.strip() for step in text.split(unescaped(separator)) if step.strip()]
