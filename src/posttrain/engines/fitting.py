"""Dropping whole worked examples from the front of a prompt that does not fit the context; never a cut, and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import ContextOverflowError
from ..core.protocols import Engine, Watch
from ..core.types import Answer, Completion, Delta, Message, ModelShape, Prompt, Sampling

__all__ = ["Fitting", "without_first_shot"]


def without_first_shot(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """Return the messages without their first worked example; None when they show none.

    All turns of the example go; an example inside a turn's content is taken out of it. Everything else stays as it is.
    """
    first = next((at for at, message in enumerate(messages) if message.shot or message.shots), None)
    if first is None:
        return None
    message = messages[first]
    if message.shot:
        return tuple(other for other in messages if other.shot != message.shot)
    shown, *others = message.shots
    content = message.content.replace(shown, "", 1)
    return (*messages[:first], replace(message, content=content, shots=tuple(others)), *messages[first + 1 :])


class Fitting:
    """An engine that answers a prompt which is too long without its first worked examples, as few dropped as needed.

    What is dropped is a function of the call alone, so that the samples of one pool see one prompt. `dropped` is the most
    that any call of this object has lost: make one object per example. A prompt that does not fit without any shots is
    the engine's `ContextOverflowError`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.dropped = 0

    @property
    def can(self) -> frozenset[str]:
        """What the engine below can do."""
        return self._engine.can

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the engine below."""
        return self._engine.fingerprint

    @property
    def shape(self) -> ModelShape | None:
        """The shape of the model below."""
        return self._engine.shape

    def __getattr__(self, name: str) -> Any:
        """Whatever else the engine below offers, such as `count_tokens`."""
        return getattr(self._engine, name)

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Generate, after as few whole shots as fit."""
        shown, dropped = prompt, 0
        while True:
            try:
                found = await self._engine.generate(shown, sampling, seed=seed, samples=samples, watch=watch)
            except ContextOverflowError as overflow:
                shown, dropped = _shorter(shown, overflow), dropped + 1
            else:
                self.dropped = max(self.dropped, dropped)
                return found

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Score, after as few whole shots as fit."""
        shown, dropped = prompt, 0
        while True:
            try:
                found = await self._engine.score(shown, continuation)
            except ContextOverflowError as overflow:
                shown, dropped = _shorter(shown, overflow), dropped + 1
            else:
                self.dropped = max(self.dropped, dropped)
                return found

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Stream, after as few whole shots as fit: an overflow is raised before anything is written."""
        shown, dropped = prompt, 0
        while True:
            try:
                async for delta in self._engine.stream(shown, sampling, seed=seed):
                    self.dropped = max(self.dropped, dropped)
                    yield delta
                return
            except ContextOverflowError as overflow:
                shown, dropped = _shorter(shown, overflow), dropped + 1

    def noted(self, answer: Answer) -> Answer:
        """Return the answer with `shots_dropped` in its trace, when some were."""
        return replace(answer, trace={**answer.trace, "shots_dropped": self.dropped}) if self.dropped else answer


def _shorter(prompt: Prompt, overflow: ContextOverflowError) -> Prompt:
    """Return the prompt with one shot fewer; raise the overflow when there is none to drop."""
    messages = without_first_shot(prompt.messages)
    if messages is None:
        raise overflow
    return replace(prompt, messages=messages)
