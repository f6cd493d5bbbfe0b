"""An engine under a budget: what would not fit is not begun."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from ..core.protocols import Engine, Watch
from ..core.types import Completion, Delta, ModelShape, Prompt, Sampling, Usage
from .meter import usage_flops
from .purse import Share

__all__ = ["MIN_TOKENS", "Budgeted"]

MIN_TOKENS = 16  # a reply cut shorter than this answers nothing: rather none


class Budgeted:
    """An engine that does no more than the budget allows; it goes directly inside the meter that charges the account.

    Before each call the worst case is set aside: the prompt and `max_tokens` for every sample. Where that does not fit, as
    many of the first samples are drawn as do; since replies end before their limit, what they leave is used for the next
    ones, until not one more fits. When not even one sample fits whole, `max_tokens` is lowered for it (its finish is then
    "length"), but not below 16; if that does not fit either, `BudgetSpentError` is raised. Costs are cold: a cache changes
    nothing.

    The prompt's length is what the engine counts; for one that cannot count, as many tokens as bytes (and some for the
    template), until a first call has told.
    """

    def __init__(self, engine: Engine, share: Share) -> None:
        self._engine = engine
        self._share = share
        self._lengths: dict[Prompt, int] = {}

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
        if name.startswith("_"):
            raise AttributeError(name)
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
        """Generate all, or as many of the first as fit; `BudgetSpentError` when not one does."""
        if not samples:
            return []
        length = self._length(prompt)
        full = self._price(length, [sampling.max_tokens] * len(samples))
        async with self._share.purse.claim(full) as amount:
            if amount >= full:
                drawn = await self._engine.generate(prompt, sampling, seed=seed, samples=samples, watch=watch)
            else:
                drawn = await self._waves(prompt, sampling, seed, samples, watch, length, amount)
        if drawn and not hasattr(self._engine, "count_tokens"):
            self._lengths[prompt] = drawn[0].usage.prompt
        return drawn

    async def _waves(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        samples: Sequence[int],
        watch: Watch | None,
        length: int,
        amount: float,
    ) -> list[Completion]:
        """Draw as many as fit, then as many as fit into what these have left, and so on."""
        done: list[Completion] = []
        while len(done) < len(samples):
            generated = [completion.usage.generated for completion in done]
            fit = self._fit(length, generated, [sampling.max_tokens] * (len(samples) - len(done)), amount)
            shorter = sampling
            if not fit and done:
                break
            if not fit:
                shorter = replace(sampling, max_tokens=self._tokens(length, sampling.max_tokens, amount))
                fit = 1
            some = samples[len(done) : len(done) + fit]
            fresh = await self._engine.generate(prompt, shorter, seed=seed, samples=some, watch=watch)
            if not done:
                length = fresh[0].usage.prompt
                done += fresh
            else:  # one call to whoever asked: its prompt is charged once
                own = [replace(Usage(), generated=c.usage.generated, replayed=c.usage.replayed) for c in fresh]
                done += [replace(completion, usage=usage) for completion, usage in zip(fresh, own, strict=True)]
            if shorter is not sampling:
                break
        else:
            return done
        self._share.short = True
        return done

    def _fit(self, length: int, generated: list[int], wanted: list[int], amount: float) -> int:
        """Return how many of the wanted replies fit beside those that are there."""
        fit = 0
        while fit < len(wanted) and self._price(length, generated + wanted[: fit + 1]) <= amount:
            fit += 1
        return fit

    def _tokens(self, length: int, most: int, amount: float) -> int:
        """Return the longest reply that fits, by bisection; raises when it would be too short to say anything."""
        least = min(MIN_TOKENS, most)
        if self._price(length, [least]) > amount:
            raise self._share.refuse(length, least)
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._price(length, [middle]) <= amount else (low, middle - 1)
        return low

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Score, if it fits whole."""
        length, more = self._scored(prompt, continuation)
        full = self._price(length, [more])
        async with self._share.purse.claim(full) as amount:
            if amount < full:
                raise self._share.refuse(length, more)
            return await self._engine.score(prompt, continuation)

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Stream sample 0, its `max_tokens` lowered to what fits."""
        length = self._length(prompt)
        full = self._price(length, [sampling.max_tokens])
        async with self._share.purse.claim(full) as amount:
            if amount < full:
                sampling = replace(sampling, max_tokens=self._tokens(length, sampling.max_tokens, amount))
                self._share.short = True
            inner = self._engine.stream(prompt, sampling, seed=seed)
            try:
                async for delta in inner:
                    yield delta
            finally:
                if hasattr(inner, "aclose"):
                    await inner.aclose()

    def _length(self, prompt: Prompt) -> int:
        count = getattr(self._engine, "count_tokens", None)
        if count is not None:
            return int(count(prompt))
        known = self._lengths.get(prompt)
        if known is not None:
            return known
        return 256 + len(prompt.begun.encode()) + sum(32 + len(message.content.encode()) for message in prompt.messages)

    def _scored(self, prompt: Prompt, continuation: str | Completion) -> tuple[int, int]:
        """Return the tokens of a prompt and of what is scored behind it."""
        reads = getattr(self._engine, "count_scored", None)
        if reads is not None:  # a reward model reads both as one text
            return 0, int(reads(prompt, continuation))
        return self._length(prompt), self._continuation(continuation)

    def _continuation(self, continuation: str | Completion) -> int:
        if isinstance(continuation, Completion) and continuation.tokens:
            return len(continuation.tokens)
        text = continuation if isinstance(continuation, str) else continuation.text
        count = getattr(self._engine, "count_text", None)
        return int(count(text)) if count is not None else len(text.encode())

    def _price(self, prompt: int, generated: Sequence[int]) -> float:
        """Return what a call costs, cold, in the budget's unit."""
        if self._share.purse.unit == "tokens" or self._engine.shape is None:
            return float(prompt + sum(generated))
        return usage_flops(self._engine.shape, prompt, [Usage(generated=n) for n in generated])[0]
