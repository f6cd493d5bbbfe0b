"""The remote engine: generates with a model behind any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import CapabilityError, ConfigError, ServerError
from ...core.protocols import Watch
from ...core.seeds import derive
from ...core.types import Completion, Delta, ModelShape, Prompt, Sampling, Usage
from .exact import Reader
from .probe import CHAT, probe
from .settings import Server
from .transport import Transport, run
from .updating import take
from .wire import Features, body_of, completion_of, shared, usage_of

__all__ = ["OpenAIEngine", "open_server"]

_EMPTY_HANDED = 3  # answers in a row that hold no choice before a call is given up


class OpenAIEngine:
    """Generates through a server's chat endpoint; what it can do is what probing has found.

    Each sample is a request of its own with a seed derived from (seed, prompt, sample index), so that sample i does not
    depend on how many are asked for, where the server honours seeds. Usage is what the server reports; the prompt is charged
    once per call, in the first completion. A `Completion` to continue is sent as text: the server tokenises it again.

    Args:
        server: which server and how it is asked.
        model: the model's name there.
        features: what the server can do (`open_server` finds out).
        shape: sizes for the FLOPs formulas, if known.
        count_tokens: the length of a prompt, if there is a way to know it before the server says it (for budgets).
        reader: finds the ids that were drawn, where these are needed (rollouts); prompts are then checked, too.
    """

    count_tokens: Callable[[Prompt], int]

    def __init__(
        self,
        server: Server,
        model: str,
        features: Features,
        *,
        shape: ModelShape | None = None,
        count_tokens: Callable[[Prompt], int] | None = None,
        reader: Reader | None = None,
    ) -> None:
        if count_tokens is not None:
            self.count_tokens = count_tokens
        self._server = server
        self._transport = Transport(server)
        self._model = model
        self._features = features
        self._reader = reader
        self._weights = ""
        self.shape = shape
        self.name = model
        found = {"logprobs": features.logprobs, "prefix": features.prefix is not None, "stream": features.stream}
        found["update"] = bool(server.update)
        self.can = frozenset(name for name, there in found.items() if there)

    @property
    def features(self) -> Features:
        """What probing has found."""
        return self._features

    @property
    def fingerprint(self) -> str:
        """The URL, the model's name, also as the server gives it, settings that change what is generated, and weights."""
        parts = ["openai", self._transport.url, self._model, self._features.served, str(self._server.version), self._weights]
        parts.append("together" if self._server.together else "")
        if self._server.more:
            told = json.dumps(self._server.more, sort_keys=True)
            parts.append(hashlib.sha256(told.encode()).hexdigest()[:12])
        return ":".join(part for part in parts if part)

    def update_from(self, folder: Path) -> None:
        """Have the server take the weights in a folder that it sees under the same path, and wait until it has.

        No request may be under way. A folder's name stands for its weights: give other weights another one.
        """
        run(take(self._transport, self._server.update, folder, more=self._server.more))
        self._weights = folder.name
        if self._server.update == "model_name":
            self._model = str(folder)

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

        Raises:
            CapabilityError: a watch, or a setting that the server does not take.
            ContextOverflowError: the prompt does not fit.
            ServerError: the server cannot be reached, refuses or fails, also after trying again.
        """
        if watch is not None:
            raise CapabilityError("a server's tokens cannot be watched while it writes: use the local engine")
        if not samples:
            return []
        _check(sampling)
        done: dict[int, Completion] = {}
        try:
            if self._server.together and len(samples) > 1:
                await self._together(prompt, sampling, seed, samples, done)
            else:
                await _all(self._one(prompt, sampling, seed, sample, place, done) for place, sample in enumerate(samples))
        except asyncio.CancelledError as error:
            error.usages = [done[place].usage for place in sorted(done)]  # type: ignore[attr-defined]  # for the meter
            raise
        prompts = [completion.usage for completion in done.values()]
        charged = Usage(calls=1, prompt=max(u.prompt for u in prompts), cached=min(u.cached for u in prompts))
        return [
            replace(done[place], usage=replace(charged if place == 0 else Usage(), generated=done[place].usage.generated))
            for place in range(len(samples))
        ]

    async def _one(
        self, prompt: Prompt, sampling: Sampling, seed: int, sample: int, place: int, done: dict[int, Completion]
    ) -> None:
        answer, choices = await self._asked(prompt, sampling, seed, sample, n=1)
        usage = usage_of(answer, self._transport.url)
        found = completion_of(choices[0], prompt, sampling, self._features, sample=sample, usage=usage)
        if self._reader is not None:
            self._reader.check_prompt(prompt, answer, usage, self._transport.url)
            found = self._reader.read(found, choices[0], sampling, usage.generated)
        done[place] = found

    async def _together(
        self, prompt: Prompt, sampling: Sampling, seed: int, samples: Sequence[int], done: dict[int, Completion]
    ) -> None:
        """Ask for all that are still missing in one request, and again as long as the server gives fewer."""
        while len(done) < len(samples):
            missing = range(len(done), len(samples))
            answer, choices = await self._asked(prompt, sampling, seed, samples[missing[0]], n=len(missing))
            usage, choices = usage_of(answer, self._transport.url), choices[: len(missing)]
            for place, choice, generated in zip(missing, choices, shared(usage.generated, choices), strict=False):
                part = replace(usage, generated=generated)
                done[place] = completion_of(choice, prompt, sampling, self._features, sample=samples[place], usage=part)

    async def _asked(
        self, prompt: Prompt, sampling: Sampling, seed: int, sample: int, *, n: int
    ) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
        """Send one request; an answer that holds no choice is asked for again."""
        body = self._body(prompt, sampling, seed, sample) | ({"n": n} if n > 1 else {})
        for attempt in range(_EMPTY_HANDED):
            answer = await self._transport.post(CHAT, body, seed=derive(seed, "request", sample, attempt))
            choices = answer.get("choices") if isinstance(answer, dict) else None
            if isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
                return answer, choices
        raise ServerError(f"{self._transport.url}{CHAT} answered {_EMPTY_HANDED} times without choices: look into its log")

    def _body(self, prompt: Prompt, sampling: Sampling, seed: int, sample: int) -> dict[str, Any]:
        told = json.dumps([[message.to_dict() for message in prompt.messages], prompt.begun])
        drawn = derive(seed, "sample", sample, told) >> 32  # 31 bits: what every server takes
        return {"model": self._model, **body_of(prompt, sampling, self._features, seed=drawn), **self._server.more}

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Refuse: chat endpoints do not score a given text."""
        raise CapabilityError("this server cannot score a given text: use the local engine")

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Yield sample 0 as the server sends it; closing the iterator closes the connection, which ends the generation.

        Raises:
            ServerError: the stream broke off before the answer was whole.
        """
        if not self._features.stream:
            raise CapabilityError("this server does not stream")
        _check(sampling)
        body = self._body(prompt, sampling, seed, 0) | {"stream": True}
        if self._features.stream_usage:
            body["stream_options"] = {"include_usage": True}
        gathered = _Gathered()
        whole = bool(sampling.stop) or (self._features.trims and bool(prompt.begun))  # may still be cut at either end
        events = self._transport.stream(CHAT, body, seed=derive(seed, "request", 0))
        try:
            async for event in events:
                piece = gathered.add(event)
                if piece and not whole:
                    yield Delta(text=piece)
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        if gathered.finish is None:
            raise ServerError(f"{self._transport.url}: the stream broke off after {gathered.pieces} pieces: ask again")
        completion = completion_of(
            gathered.choice, prompt, sampling, self._features, sample=0, usage=gathered.usage(self._transport.url)
        )
        if whole:
            yield Delta(text=completion.text)
        yield Delta(text="", completion=completion)


class _Gathered:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.pieces = 0
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self._stop_reason: Any = None
        self._answer: Mapping[str, Any] = {}

    def add(self, event: Any) -> str:
        """Take an event in and return the text it brings."""
        if not isinstance(event, dict):
            return ""
        if event.get("usage"):
            self._answer = event
        choices = event.get("choices") or []
        if not choices or not isinstance(choices[0], dict):
            return ""
        choice = choices[0]
        self.finish = choice.get("finish_reason") or self.finish
        self._stop_reason = choice.get("stop_reason") or self._stop_reason
        told = choice.get("logprobs")
        self._logprobs += (told.get("content") or []) if isinstance(told, dict) else []
        piece = str((choice.get("delta") or {}).get("content") or "")
        if piece:
            self.pieces += 1
            self._text.append(piece)
        return piece

    @property
    def choice(self) -> dict[str, Any]:
        """All of it in the form of an answer that was not streamed."""
        return {
            "message": {"content": "".join(self._text)},
            "finish_reason": self.finish,
            "stop_reason": self._stop_reason,
            "logprobs": {"content": self._logprobs},
        }

    def usage(self, where: str) -> Usage:
        """Return the usage reported; a server that reports none with a stream is charged one token per piece."""
        if self._answer:
            return usage_of(self._answer, where)
        return Usage(calls=1, generated=max(self.pieces, len(self._logprobs)))


def open_server(
    server: Server, *, shape: ModelShape | None = None, count_tokens: Callable[[Prompt], int] | None = None,
    reader: Reader | None = None,
) -> OpenAIEngine:  # fmt: skip
    """Probe the server and return the engine; raises one sentence when it cannot be used."""

    async def ask() -> tuple[str, Features]:
        return await probe(Transport(server), server)

    model, features = run(ask())
    return OpenAIEngine(server, model, features, shape=shape, count_tokens=count_tokens, reader=reader)


async def _all(coroutines: Any) -> None:
    """Run all; when one fails the others are cancelled, and its error is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _check(sampling: Sampling) -> None:
    if sampling.max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
    if "" in sampling.stop:
        raise ConfigError("a stop string must not be empty")
