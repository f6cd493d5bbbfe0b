"""Replies to fixed prompts while training goes on, so that a reader sees what the numbers mean: `samples.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import DataError
from ..core.types import Completion, Cost, Message, ModelShape, Prompt, Sampling
from ..data.chat import render_prompt
from ..data.sources import read_rows
from .processes import by_first_process, rank_and_world
from .rows import question_turns
from .state import Metrics
from .step import Learner

__all__ = ["Generate", "Samples", "prompts_of"]


class Generate(Protocol):
    """Generates with a model that is being trained (`engines.local.replies`): one reply a prompt, and the cost."""

    def __call__(
        self, model: Any, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, shape: ModelShape
    ) -> tuple[list[Completion], Cost]: ...


def prompts_of(rows: Sequence[Mapping[str, Any]], where: str) -> list[tuple[Message, ...]]:
    """Return what each row asks: its `prompt`, or its conversation up to the assistant's last turn; no question twice."""
    return list(dict.fromkeys(question_turns(row, f"{where}, row {i + 1}") for i, row in enumerate(rows)))


@dataclass(slots=True, kw_only=True)
class Samples:
    """Writes greedy replies to the same prompts before the first step, every `every` steps, and at the end."""

    generate: Generate
    model: Any
    tokenizer: Any
    shape: ModelShape
    prompts: Sequence[Prompt]
    sampling: Sampling
    every: int
    path: Path
    seed: int
    _file: Metrics | None = None

    @classmethod
    def open(
        cls, rows: Sequence[Mapping[str, Any]], file: str | None, *, count: int, tokens: int, context: int, **rest: Any
    ) -> Samples:
        """Take the first `count` prompts that fit the context with `tokens` to come, of a file or of the held-out rows.

        Raises `DataError` when there is none.
        """
        where = file or "held-out rows"
        asked = [Prompt(messages=turns) for turns in prompts_of(read_rows(file) if file else rows, where)]
        tokenizer = rest["tokenizer"]
        fitting = (
            p for p in asked if len(render_prompt(tokenizer, p.messages, opening="", prefix=None)) + tokens <= context
        )
        prompts = [prompt for prompt, _ in zip(fitting, range(count), strict=False)]
        if not prompts:
            raise DataError(f"sample_every: no prompt of {where} fits the context of {context} tokens with {tokens} to come")
        return cls(prompts=prompts, sampling=Sampling(max_tokens=tokens), **rest)

    def begin(self, learner: Learner, done: int) -> None:
        """Open the file, cut off what came after step `done`, and sample the start model if this is the first start."""
        if rank_and_world()[0] == 0:
            self._file = Metrics(self.path, steps=done)
        if not done:
            self._write(learner, 0)

    def after(self, learner: Learner, step: int, total: int) -> None:
        """Sample when it is due after `step` steps (and at the end)."""
        if step % self.every == 0 or step == total:
            self._write(learner, step)

    def _write(self, learner: Learner, step: int) -> None:
        def work() -> None:
            found, cost = self.generate(
                self.model, self.tokenizer, self.prompts, self.sampling, seed=self.seed, shape=self.shape
            )
            learner.cost += cost
            assert self._file is not None
            for prompt, reply in zip(self.prompts, found, strict=True):
                messages = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
                tokens = len(reply.tokens)
                self._file.write(
                    {"step": step, "messages": messages, "reply": reply.text, "finish": reply.finish, "tokens": tokens}
                )

        by_first_process(work)

    def lengths(self) -> dict[str, float]:
        """Return the mean tokens of the first replies and of the last ones: whether training made replies longer."""
        rows = read_rows(self.path)
        ends = {"first": rows[0]["step"], "last": rows[-1]["step"]}
        replies = {name: [row["tokens"] for row in rows if row["step"] == step] for name, step in ends.items()}
        return {name: sum(tokens) / len(tokens) for name, tokens in replies.items()}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
