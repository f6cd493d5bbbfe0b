"""An engine that answers from a script: for tests of everything above engines, and for rehearsing runs."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from ..core.errors import CapabilityError
from ..core.protocols import Watch
from ..core.types import Completion, Delta, Finish, ModelShape, Prompt, Sampling, TokenEvent, Usage

__all__ = ["ScriptedEngine"]

Reply = Callable[[str, int, int], str] | Mapping[str, str | Sequence[str]]
Respond = Callable[[Prompt, int, int], str]
Logprobs = Callable[[str, Sequence[str]], Sequence[float]]


class ScriptedEngine:
    """Deterministic replies, tokenised into words with the whitespace before them (so that they join to the text).

    Args:
        reply: `(last user text, sample, seed) -> text`, or a mapping from the last user text to a text or to the
            texts of samples 0, 1, … (repeated when more are asked).
        latency: seconds that every call waits.
        respond: `(prompt, sample, seed) -> text`, instead of `reply`, for scripts that look at the whole conversation or
            at the prefix to continue.
        logprobs: `(last user text, words) -> log-probability per word`; default -1 each.
        shape: sizes for the FLOPs formulas.
        can: capabilities to pretend to.
    """

    def __init__(
        self,
        reply: Reply,
        latency: float = 0.0,
        *,
        respond: Respond | None = None,
        logprobs: Logprobs | None = None,
        shape: ModelShape | None = None,
        can: frozenset[str] = frozenset({"logprobs", "score", "prefix", "watch", "stream"}),
        fingerprint: str = "scripted",
    ) -> None:
        self._reply = reply
        self._respond = respond
        self._latency = latency
        self._logprobs = logprobs
        self.shape = shape
        self.can = can
        self.fingerprint = fingerprint
        self.calls = 0

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Return the scripted replies: cut at `max_tokens` words, at the first stop string, or where `watch` says."""
        self._need("watch", watch is not None)
        self._need("prefix", bool(prompt.begun))
        self.calls += 1
        await asyncio.sleep(self._latency)
        return [
            self._completion(prompt, sampling, seed, sample, watch, first=place == 0) for place, sample in enumerate(samples)
        ]

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Return the continuation with the scripted log-probabilities."""
        self._need("score", True)
        self.calls += 1
        await asyncio.sleep(self._latency)
        text = continuation if isinstance(continuation, str) else continuation.text
        words = _words(text)
        logprobs = self._logs(_asked(prompt), words)
        usage = Usage(calls=1, prompt=self.count_tokens(prompt), scored=len(words))
        return Completion(text=text, tokens=_ids(words), logprobs=logprobs, raw_logprobs=logprobs, usage=usage)

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Yield sample 0 word by word, then the completion."""
        self._need("stream", True)
        (completion,) = await self.generate(prompt, sampling, seed=seed)
        for word in _words(completion.text):
            yield Delta(text=word)
            await asyncio.sleep(0)
        yield Delta(text="", completion=completion)

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the words of the conversation and of the opened answer."""
        return sum(len(_words(message.content)) for message in prompt.messages) + len(_words(prompt.begun))

    def count_text(self, text: str) -> int:
        """Return the words of a text."""
        return len(_words(text))

    def text_of(self, completion: Completion, tokens: int) -> str:
        """Return the text of a completion's first words."""
        return "".join(_words(completion.text)[:tokens])

    def _need(self, capability: str, wanted: bool) -> None:
        if wanted and capability not in self.can:
            raise CapabilityError(f"this scripted engine was made without '{capability}'")

    def _completion(
        self, prompt: Prompt, sampling: Sampling, seed: int, sample: int, watch: Watch | None, *, first: bool
    ) -> Completion:
        asked = _asked(prompt)
        said = self._text(asked, sample, seed) if self._respond is None else self._respond(prompt, sample, seed)
        words = _words(said)
        finish: Finish = "stop"
        generated = len(words) + 1  # with the end of turn
        if len(words) >= sampling.max_tokens:
            words, finish, generated = words[: sampling.max_tokens], "length", sampling.max_tokens
        logprobs, ids = self._logs(asked, words), _ids(words)
        for index, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            top = _likeliest(token, logprob, sampling.logprobs)
            event = TokenEvent(sample=sample, index=index, token=token, logprob=logprob, top_logprobs=top)
            if watch is not None and watch(event):
                words, finish, generated = words[: index + 1], "watch", index + 1
                break
        text = "".join(words)
        cut = min((at for at in map(text.find, sampling.stop) if at >= 0), default=None)
        stopped_by = None
        if cut is not None:
            stopped_by = next(s for s in sampling.stop if text.startswith(s, cut))
            until = cut + len(stopped_by) * sampling.keep_stop
            finish, generated = "stop", len(_words(text[:cut])) + 1
            words, text = _words(text[:until]), text[:until]
        ids, logprobs = _ids(words), self._logs(asked, words)
        tops = tuple(_likeliest(token, logprob, sampling.logprobs) for token, logprob in zip(ids, logprobs, strict=True))
        return Completion(
            text=text,
            tokens=ids,
            logprobs=logprobs,
            raw_logprobs=logprobs,
            top_logprobs=tops if sampling.logprobs else None,
            finish=finish,
            stopped_by=stopped_by,
            sample=sample,
            usage=replace(Usage(generated=generated), calls=int(first), prompt=self.count_tokens(prompt) if first else 0),
        )

    def _text(self, asked: str, sample: int, seed: int) -> str:
        if callable(self._reply):
            return self._reply(asked, sample, seed)
        if asked not in self._reply:
            raise CapabilityError(f"the script has no reply to {asked[:80]!r}")
        reply = self._reply[asked]
        return reply if isinstance(reply, str) else reply[sample % len(reply)]

    def _logs(self, asked: str, words: Sequence[str]) -> tuple[float, ...]:
        return tuple(self._logprobs(asked, words)) if self._logprobs else (-1.0,) * len(words)


def _likeliest(token: int, logprob: float, k: int) -> tuple[tuple[int, float], ...]:
    """Return the k likeliest tokens where one other token has all the rest of the probability."""
    rest = -math.expm1(logprob)
    pairs = [(token, logprob)] + ([(token ^ 1, math.log(rest))] if rest > 0 else [])
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:k])


def _asked(prompt: Prompt) -> str:
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _ids(words: Sequence[str]) -> tuple[int, ...]:
    return tuple(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") for word in words)
