"""An engine that reads rewards instead of writing text: one forward pass over a text, one number per asked position."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NoReturn

from ..core.errors import CapabilityError, ConfigError, ContextOverflowError, ModelError
from ..core.protocols import Watch
from ..core.types import Completion, Delta, Message, ModelShape, Prompt, Sampling, Usage

if TYPE_CHECKING:
    from ..models.scorers import LoadedScorer

__all__ = ["Laid", "RewardEngine"]


GROUP = 16  # texts that share the computation of a question at most: where nothing is left out, attention is dense over them


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A prompt and a text as the token ids a reward model reads, and the positions at which it is asked, in order."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    types: tuple[int, ...] | None = None  # token types of an encoder that is given two segments

    @property
    def mask(self) -> list[bool]:
        """For each token, whether the model is asked there."""
        asked = set(self.positions)
        return [i in asked for i in range(len(self.ids))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    asked: tuple[Message, ...]
    laid: Laid
    future: Future[tuple[float, ...]] = field(default_factory=Future)


class RewardEngine:
    """Scores given texts with a reward model: `score` returns them with `Completion.rewards`, one per position.

    Concurrent calls are batched together, at most `batch_tokens` tokens a batch, padding included; equal texts are computed
    once. On a processor texts of a question share the computation of what they begin with, question by question in the order
    they came; elsewhere, and where the model cannot do that exactly, they are read longest first and padded. A reward does
    not depend on what else is in its batch (beyond the rounding of its number type). It is metered like any engine: every
    token of every sequence counts as scored, so what sharing saves is in the time and not in the ledger. It generates
    nothing.

    Args:
        scorer: the model.
        lay_out: prompt and text to ids and positions; no positions: there is nothing to score, and nothing is computed.
        value: the logits at a position to its reward.
        batch_tokens: the bound of a batch; a longer text is a batch of its own.
    """

    can = frozenset({"reward"})

    def __init__(
        self,
        scorer: LoadedScorer,
        lay_out: Callable[[Prompt, str], Laid],
        value: Callable[[Sequence[float]], float],
        *,
        batch_tokens: int = 16384,
    ) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1, not {batch_tokens}")
        self._scorer = scorer
        self._lay_out = lay_out
        self._value = value
        self._batch_tokens = batch_tokens
        self._waiting: list[_Job] = []
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    @property
    def fingerprint(self) -> str:
        """The reward model's fingerprint."""
        return self._scorer.fingerprint

    @property
    def shape(self) -> ModelShape | None:
        """Sizes for the FLOPs formulas."""
        return self._scorer.shape

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Return the text with its rewards.

        Raises:
            ContextOverflowError: prompt and text do not fit the reward model's context.
        """
        text = continuation if isinstance(continuation, str) else continuation.text
        laid = self._lay_out(prompt, text)
        if not laid.positions:
            return Completion(text=text, rewards=())
        context = self._scorer.context
        if context is not None and len(laid.ids) > context:
            raise ContextOverflowError(
                f"a text of {len(laid.ids)} tokens with its question does not fit the context of {context} of reward model "
                f"'{self._scorer.name}': lower the reply's max_tokens or use a reward model with a longer context"
            )
        job = _Job(asked=prompt.messages, laid=laid)
        with self._lock:
            self._waiting.append(job)
        asyncio.get_running_loop().call_soon(self._worker.submit, self._serve)  # after all that ask in this turn of the loop
        rewards = await asyncio.wrap_future(job.future)
        return Completion(text=text, rewards=rewards, usage=Usage(calls=1, scored=len(laid.ids)))

    def count_scored(self, prompt: Prompt, continuation: str | Completion) -> int:
        """Return how many tokens `score` reads."""
        text = continuation if isinstance(continuation, str) else continuation.text
        laid = self._lay_out(prompt, text)
        return len(laid.ids) if laid.positions else 0

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Refuse: a reward model writes nothing."""
        self._refuse()

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Refuse: a reward model writes nothing."""
        self._refuse()
        yield Delta(text="")  # type: ignore[unreachable]  # makes this a generator

    def _refuse(self) -> NoReturn:
        raise CapabilityError(f"'{self._scorer.name}' is a reward model: it scores texts and cannot generate any")

    def _serve(self) -> None:
        while batch := self._next():
            different = {job.laid: job.asked for job in batch}
            try:
                found = dict(zip(different, self._read(list(different.items())), strict=True))
            except BaseException as error:
                for job in batch:
                    job.future.set_exception(error)
            else:
                for job in batch:
                    job.future.set_result(found[job.laid])

    def _next(self) -> list[_Job]:
        """Take the first of what waits and as many different ones of the next as the token budget holds."""
        with self._lock:
            waiting = self._ordered([job for job in self._waiting if not job.future.cancelled()])
            taken: set[Laid] = set()
            tokens = longest = end = 0
            for job in waiting:
                if job.laid not in taken:
                    longest = max(longest, len(job.laid.ids))
                    tokens = tokens + len(job.laid.ids) if self._scorer.packs else longest * (len(taken) + 1)
                    if taken and tokens > self._batch_tokens:
                        break
                    taken.add(job.laid)
                end += 1
            batch, self._waiting = waiting[:end], waiting[end:]
        return [job for job in batch if job.future.set_running_or_notify_cancel()] or (self._next() if batch else [])

    def _ordered(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Texts of a question side by side, those alike next to each other; or the longest first, equal ones together."""
        if not self._scorer.packs:
            return sorted(jobs, key=lambda job: (len(job.laid.ids), job.laid.ids), reverse=True)
        of: dict[tuple[Message, ...], list[_Job]] = {}
        for job in jobs:
            of.setdefault(job.asked, []).append(job)
        return [job for alike in of.values() for job in sorted(alike, key=lambda job: job.laid.ids)]

    def _read(self, batch: Sequence[tuple[Laid, tuple[Message, ...]]]) -> list[tuple[float, ...]]:
        import torch

        texts = [laid for laid, _ in batch]
        groups = [[laid for laid, _ in alike] for _, alike in groupby(batch, key=lambda pair: pair[1])]
        cut = [group[at : at + GROUP] for group in groups for at in range(0, len(group), GROUP)]
        try:
            with torch.inference_mode():
                logits_NK = self._scorer.logits(cut).tolist()
        except torch.OutOfMemoryError:
            longest = max(len(laid.ids) for laid in texts)
            raise ModelError(
                f"reward model '{self._scorer.name}' ran out of memory on {len(texts)} texts of up to {longest} tokens: "
                "lower its batch_tokens, or the slots of the generating engine"
            ) from None
        values = iter(logits_NK)
        return [tuple(self._value(next(values)) for _ in laid.positions) for laid in texts]
