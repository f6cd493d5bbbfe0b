"""One sample being written: its tokens, its text as it grows, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.protocols import Watch
from ...core.types import Completion, Finish, Sampling, TokenEvent, Usage
from .sampler import stream_key

__all__ = ["Detokenizer", "Request", "ScoreRequest", "Trace", "cut_at_stop", "decode_text"]


def decode_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of the tokens, without special tokens and without tidying of spaces."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Detokenizer:
    """Text of a growing list of tokens, in amortised constant time per token; never half a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._from = 0  # start of the window that is decoded anew: a token boundary where text was complete
        self._done = 0  # tokens whose text has been given out
        self.text = ""

    def add(self, token: int) -> None:
        """Append a token; `text` grows unless the token ends within a character."""
        self._tokens.append(token)
        before = decode_text(self._tokenizer, self._tokens[self._from : self._done])
        now = decode_text(self._tokenizer, self._tokens[self._from :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.text += now[len(before) :]
            self._from, self._done = self._done, len(self._tokens)


def cut_at_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the earliest stop string begins, or None."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many trailing characters may be the beginning of a stop string."""
    longest = max((len(s) for s in stops), default=0)
    for n in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


@dataclass(eq=False, kw_only=True)
class Request:
    """One `generate` call: its samples, and where to put their completions."""

    ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    samples: tuple[int, ...]
    watch: Watch | None
    deliver: Callable[[list[Completion] | BaseException], None]
    on_text: Callable[[str], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: dict[int, Completion] = field(default_factory=dict)  # by place in `samples`
    cached: int | None = None  # prompt tokens that an earlier call had computed; None until the first is admitted
    traces: list[Trace] = field(default_factory=list)

    def open(self, tokenizer: Any, end_ids: frozenset[int]) -> Request:
        """Make one trace per sample, and return self."""
        self.traces = [Trace(self, place, tokenizer, end_ids) for place in range(len(self.samples))]
        return self


@dataclass(eq=False, kw_only=True)
class ScoreRequest:
    """One `score` call."""

    ids: tuple[int, ...]
    continuation: tuple[int, ...]
    deliver: Callable[[Completion | BaseException], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Trace:
    """One sample of a request, from its admission to a slot until its end."""

    def __init__(self, request: Request, place: int, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self.request = request
        self.place = place
        self.sample = request.samples[place]
        self.key = stream_key(request.seed, request.ids, self.sample)
        self.slot = -1
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.raw_logprobs: list[float] = []
        self.top: list[tuple[tuple[int, float], ...]] = []
        self.generated = 0
        self.end_logprob: float | None = None
        self.end_token: int | None = None
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        watched = request.sampling.stop or request.on_text
        self._text = Detokenizer(tokenizer) if watched else None
        self._emitted = 0

    def add(self, token: int, logprob: float, raw: float, top: tuple[tuple[int, float], ...]) -> Finish | None:
        """Append a sampled token; return how the sequence ends with it, or None if it goes on."""
        self.generated += 1
        sampling = self.request.sampling
        if token in self._end_ids:
            self.end_logprob, self.end_token = raw, token
            return "stop"
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.raw_logprobs.append(raw)
        if sampling.logprobs:
            self.top.append(top)
        watch = self.request.watch
        ended = watch is not None and watch(
            TokenEvent(sample=self.sample, index=len(self.tokens) - 1, token=token, logprob=raw, top_logprobs=top)
        )
        if self._text is not None:
            self._text.add(token)
            if cut_at_stop(self._text.text[-self._window() :], sampling.stop) is not None:
                return "stop"
            self._emit(self._text.text)
        if ended:
            return "watch"
        return "length" if self.generated >= sampling.max_tokens else None

    def _window(self) -> int:
        # What the newest token can have completed; a token's text is hardly ever longer than this margin.
        return max(map(len, self.request.sampling.stop), default=0) + 256

    def _emit(self, text: str) -> None:
        if self.request.on_text is not None:
            until = len(text) - held_back(text, self.request.sampling.stop)
            self.request.on_text(text[self._emitted : until] if until > self._emitted else "")  # one call per token
            self._emitted = max(self._emitted, until)

    @property
    def usage(self) -> Usage:
        """What the sample has cost so far; the first of a request carries the prompt."""
        if self.place > 0:
            return Usage(generated=self.generated)
        prompt, cached = len(self.request.ids), self.request.cached
        if cached is None:  # cancelled before it was begun
            return Usage(calls=1)
        return Usage(calls=1, prompt=prompt, cached=cached, generated=self.generated)

    def complete(self, finish: Finish) -> Completion:
        """Return the completion; tokens that reach into a stop string are cut off with it, unless it is to be kept."""
        sampling, kept = self.request.sampling, len(self.tokens)
        text = decode_text(self._tokenizer, self.tokens)
        cut, stopped_by = cut_at_stop(text, sampling.stop), None
        if cut is not None:
            finish, stopped_by = "stop", next(s for s in sampling.stop if text.startswith(s, cut))
            if not sampling.keep_stop:
                text = text[:cut]
                while kept and len(decode_text(self._tokenizer, self.tokens[:kept])) > cut:
                    kept -= 1
        if self.request.on_text is not None and len(text) > self._emitted:
            self.request.on_text(text[self._emitted :])
        return Completion(
            text=text,
            tokens=tuple(self.tokens[:kept]),
            logprobs=tuple(self.logprobs[:kept]),
            raw_logprobs=tuple(self.raw_logprobs[:kept]),
            top_logprobs=tuple(self.top[:kept]) if sampling.logprobs else None,
            end_logprob=self.end_logprob,
            end_token=self.end_token,
            finish=finish,
            stopped_by=stopped_by,
            sample=self.sample,
            usage=self.usage,
        )
