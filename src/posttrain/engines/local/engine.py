"""The in-process engine: any transformers decoder, continuous batching, shared prefixes, exact scores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from ...core.errors import ConfigError, ContextOverflowError, ModelError
from ...core.protocols import Watch
from ...core.types import Completion, Delta, ModelShape, Prompt, Sampling
from ...data.chat import end_ids, render_prompt
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Request, ScoreRequest, decode_text

__all__ = ["LocalEngine"]


class LocalEngine:
    """Generates with a model in this process, sharing its weights.

    Concurrent calls are batched together. A sample is a pure function of (seed, prompt token ids, sample index,
    absolute position) in float32: it does not depend on what else runs, nor on how many samples are asked at once.

    Args:
        model: a transformers causal language model; its own attention implementation and mode are left alone.
        tokenizer: its tokenizer, with a chat template.
        fingerprint: names the weights (for caches); `update` appends a version.
        shape: sizes for the FLOPs formulas.
        slots: samples that run together at most; memory may allow fewer.
        max_context: positions (prompt and completion); default: what the model's configuration says.
        prefix_reuse: start a prompt from the slot that shares most leading tokens with it.

    Raises:
        ModelError: the architecture keeps a state that slots cannot hold (recurrent, shared between layers, …).
    """

    can = frozenset({"logprobs", "score", "prefix", "watch", "stream", "update"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        fingerprint: str,
        shape: ModelShape | None = None,
        slots: int = 128,
        max_context: int | None = None,
        prefix_reuse: bool = True,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, not {slots}")
        self._model = model
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self._version = 0
        self.shape = shape
        self._runner = Runner(model)
        known = [n for n in (max_context, self._runner.context) if n is not None]
        if not known:
            raise ModelError("this model's configuration does not say how long its context is; pass max_context")
        self._context = min(known)
        self._end_ids = end_ids(model, tokenizer)
        self._scheduler = Scheduler(
            self._runner,
            tokenizer,
            slots=slots,
            prefix_reuse=prefix_reuse,
            kv_bytes=_memory(self._runner.device),
        )

    @property
    def fingerprint(self) -> str:
        """The weights' name, with `:v<n>` after the n-th update."""
        return f"{self._fingerprint}:v{self._version}" if self._version else self._fingerprint

    @property
    def busy(self) -> int:
        """Samples that hold a slot now."""
        return self._scheduler.busy

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Draw the samples with these indices; see `posttrain.core.protocols.Engine`.

        Tokens that reach into a stop string are cut off with it. `watch` is called from the engine's thread.

        Raises:
            ContextOverflowError: prompt and `max_tokens` do not fit the model's context.
        """
        if not samples:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Completion]] = loop.create_future()
        request = Request(
            sampling=_checked(sampling),
            ids=self._render(prompt, sampling.max_tokens),
            seed=seed,
            samples=tuple(samples),
            watch=watch,
            deliver=_settler(loop, future),
        ).open(self._tokenizer, self._end_ids)
        self._scheduler.submit(request)
        try:
            return await future
        except asyncio.CancelledError as error:
            request.cancelled.set()
            error.usages = [trace.usage for trace in request.traces]  # type: ignore[attr-defined]  # for the meter
            raise

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Return the continuation with log p(token | prompt, tokens before) of each of its tokens, under the model itself.

        A text is tokenised on its own and appended to the prompt's tokens; a `Completion` is scored by its ids.
        """
        if isinstance(continuation, Completion):
            ids = continuation.tokens
        else:
            ids = tuple(self._tokenizer(continuation, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ConfigError("nothing to score: the continuation has no tokens")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        request = ScoreRequest(ids=self._render(prompt, len(ids)), continuation=ids, deliver=_settler(loop, future))
        self._scheduler.submit(request)
        try:
            scored = await future
        finally:
            request.cancelled.set()
        return replace(scored, text=continuation if isinstance(continuation, str) else continuation.text)

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Yield sample 0, one delta per token (perhaps an empty one); closing the iterator frees its slot."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | list[Completion] | BaseException] = asyncio.Queue()

        def put(item: str | list[Completion] | BaseException) -> None:
            _call_in(loop, lambda: queue.put_nowait(item))

        request = Request(
            sampling=_checked(sampling),
            ids=self._render(prompt, sampling.max_tokens),
            seed=seed,
            samples=(0,),
            watch=None,
            deliver=put,
            on_text=put,
        ).open(self._tokenizer, self._end_ids)
        self._scheduler.submit(request)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if not isinstance(item, str):
                    yield Delta(text="", completion=item[0])
                    return
                yield Delta(text=item)
        finally:
            request.cancelled.set()

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the length of the prompt in tokens."""
        return len(self.prompt_ids(prompt))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the prompt as the model reads it, with what the answer is begun with."""
        return render_prompt(self._tokenizer, prompt.messages, opening=prompt.opening, prefix=prompt.prefix)

    def count_text(self, text: str) -> int:
        """Return the length of a text in tokens, as `score` reads it."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text_of(self, completion: Completion, tokens: int) -> str:
        """Return the text of a completion's first tokens."""
        return decode_text(self._tokenizer, completion.tokens[:tokens])

    def together(self) -> AbstractContextManager[None]:
        """Start the calls that this thread makes inside in one batch, so that equal calls run in equal company."""
        return self._scheduler.together()

    def update(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Replace weights in place, by the names of `model.state_dict()`; none at all: they have been changed in place.

        Prefixes computed with the old weights are dropped and the fingerprint's version is raised.

        Raises:
            ModelError: an unknown name, another shape, or samples are being generated.
        """
        with self._scheduler.exclusive(), torch.no_grad():
            own = self._model.state_dict()
            for name, tensor in weights:
                if name not in own:
                    raise ModelError(f"the model has no weight '{name}'")
                if own[name].shape != tensor.shape:
                    raise ModelError(f"weight '{name}' is {tuple(own[name].shape)} in the model, not {tuple(tensor.shape)}")
                own[name].copy_(tensor)
            self._scheduler.forget()
            self._version += 1

    def _render(self, prompt: Prompt, more: int) -> tuple[int, ...]:
        ids = self.prompt_ids(prompt)
        if not ids:
            raise ModelError("the chat template makes an empty prompt of this conversation")
        if len(ids) + more > self._context:
            raise ContextOverflowError(
                f"a prompt of {len(ids)} tokens with {more} to come (max_tokens) does not fit the model's context of "
                f"{self._context}: shorten the prompt or lower max_tokens"
            )
        return tuple(ids)


def _checked(sampling: Sampling) -> Sampling:
    if sampling.max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
    if sampling.temperature < 0:
        raise ConfigError(f"temperature must not be negative, but is {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], not {sampling.top_p}")
    if sampling.top_k < 0 or sampling.logprobs < 0:
        raise ConfigError("top_k and logprobs must not be negative (0: off)")
    if "" in sampling.stop:
        raise ConfigError("a stop string must not be empty")
    return sampling


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
        if not loop.is_closed():
            raise


def _settler(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> Callable[[Any], None]:
    def settle(result: Any) -> None:
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    return lambda result: _call_in(loop, lambda: settle(result))


def _memory(device: torch.device) -> int:
    """Return the bytes that keys and values may take: half of what is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):  # not told on this system
        return 4 << 30
