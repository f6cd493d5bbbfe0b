"""An engine that generates nothing twice: sampled completions are kept, and any strategy and any N reads the same pool."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from .. import __version__
from ..core.protocols import Engine, Watch
from ..core.types import Completion, Delta, ModelShape, Prompt, Sampling, TokenEvent, Usage
from .generations import Generations

__all__ = ["Cached"]


class Cached:
    """An engine in front of which completions and scores are kept.

    The key is posttrain's version, the engine's fingerprint with its weights' version, the rendered prompt with what the
    answer is begun with, the settings that decide what is sampled, the seed and the sample index. A completion made with
    more `logprobs` serves a call that asks for fewer. What comes from the file is charged in full, and said to be `replayed`
    (its prompt: `cached`): costs and results are the same with and without it, only what was spent differs.

    A `watch` sees a kept trace token by token, and the trace is cut where the watch ends it, exactly as the engine would
    have. This needs the engine to tell the text of a completion's first tokens (`text_of`), and all tokens to have been
    kept: not those cut off with a stop string. Where either is missing the trace is generated again. Traces that a watch
    has ended are not kept. Streams are passed through.

    Two engines on one file must not share a fingerprint; reinforcement learning, which changes weights with every step, uses
    the engine without a cache.
    """

    def __init__(self, engine: Engine, kept: Generations) -> None:
        self._engine = engine
        self._kept = kept

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
        if name.startswith("_"):  # also while this object is being made or copied
            raise AttributeError(name)
        return getattr(self._engine, name)  # what an engine may offer beyond the protocol: count_tokens, update, …

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Return what is kept, and generate and keep the rest."""
        if not samples:
            return []
        keys = self._keys(prompt, sampling, seed, samples)
        kept = self._kept.get(keys, top=sampling.logprobs)
        if watch is not None:
            kept = {key: found for key, found in kept.items() if self._watchable(found, sampling)}
        replayed = {place: _as_asked(kept[key], sampling, samples[place]) for place, key in enumerate(keys) if key in kept}
        if watch is not None:
            replayed = self._watched(replayed, watch)
        missing = [place for place in range(len(samples)) if place not in replayed]
        fresh: list[Completion] = []
        if missing:
            asked = [samples[place] for place in missing]
            fresh = await self._engine.generate(prompt, sampling, seed=seed, samples=asked, watch=watch)
            self._keep([keys[place] for place in missing], fresh, sampling.logprobs)
        return _charged(replayed, dict(zip(missing, fresh, strict=False)))

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Return the kept score, or score and keep it."""
        digest = self._digest("score", prompt)
        digest.update(json.dumps(_plain(continuation)).encode())
        key = digest.digest()
        found = self._kept.get([key]).get(key)
        if found is not None:
            usage = replace(found.usage, cached=found.usage.prompt, replayed=found.usage.scored)
            return replace(found, usage=usage)
        scored = await self._engine.score(prompt, continuation)
        self._kept.put({key: replace(scored, usage=replace(scored.usage, cached=0))})
        return scored

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Stream from the engine below."""
        return self._engine.stream(prompt, sampling, seed=seed)

    def _digest(self, what: str, prompt: Prompt) -> Any:
        """Return a hash of what every key of a call begins with."""
        rendered = getattr(self._engine, "prompt_ids", None)
        told = rendered(prompt) if rendered is not None else _told(prompt)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([__version__, what, self._engine.fingerprint, told]).encode())
        return digest

    def _keys(self, prompt: Prompt, sampling: Sampling, seed: int, samples: Sequence[int]) -> list[bytes]:
        settings = dataclasses.asdict(replace(sampling, logprobs=0))
        if sampling.temperature == 0:
            settings |= {"top_p": 1.0, "top_k": 0}  # say nothing about a greedy choice
        digest = self._digest("generate", prompt)
        digest.update(json.dumps([settings, seed]).encode())
        keys = []
        for sample in samples:
            own = digest.copy()
            own.update(f":{sample}".encode())
            keys.append(own.digest())
        return keys

    def _keep(self, keys: Sequence[bytes], fresh: Sequence[Completion], top: int) -> None:
        """Keep whole traces, each with the prompt's length: any of them may be the first of a later call."""
        if not fresh:
            return
        prompt = fresh[0].usage.prompt
        rows = {
            key: replace(completion, usage=Usage(calls=1, prompt=prompt, generated=completion.usage.generated))
            for key, completion in zip(keys, fresh, strict=False)
            if completion.finish in ("stop", "length")
        }
        if rows:
            self._kept.put(rows, top=top)

    def _watchable(self, found: Completion, sampling: Sampling) -> bool:
        whole = found.stopped_by is None or sampling.keep_stop
        return whole and found.raw_logprobs is not None and hasattr(self._engine, "text_of")

    def _watched(self, replayed: dict[int, Completion], watch: Watch) -> dict[int, Completion]:
        """Show the traces to the watch side by side, a token of each at a time, as an engine that batches would."""
        running = dict(replayed)
        index = 0
        while running:
            for place, completion in list(running.items()):
                if index >= len(completion.tokens):
                    del running[place]
                elif watch(_event(completion, index)):
                    replayed[place] = self._cut(completion, index + 1)
                    del running[place]
            index += 1
        return replayed

    def _cut(self, completion: Completion, tokens: int) -> Completion:
        """Return the completion as it would be had the watch ended it after so many tokens."""
        text = self._engine.text_of(completion, tokens)  # type: ignore[attr-defined]  # `_watchable` has looked
        return replace(
            completion,
            text=text,
            tokens=completion.tokens[:tokens],
            logprobs=_first(completion.logprobs, tokens),
            raw_logprobs=_first(completion.raw_logprobs, tokens),
            top_logprobs=_first(completion.top_logprobs, tokens),
            end_logprob=None,
            finish="watch",
            stopped_by=None,
            usage=replace(completion.usage, generated=tokens),
        )


def _as_asked(found: Completion, sampling: Sampling, sample: int) -> Completion:
    k = sampling.logprobs
    top = tuple(step[:k] for step in found.top_logprobs) if k and found.top_logprobs is not None else None
    return replace(found, sample=sample, top_logprobs=top)


def _charged(replayed: dict[int, Completion], fresh: dict[int, Completion]) -> list[Completion]:
    """Return all completions in the order asked, the first charged with the prompt: computed for the fresh ones, or not."""
    places = sorted([*replayed, *fresh])
    first = fresh[min(fresh)].usage if fresh else replayed[0].usage
    opening = Usage(calls=1, prompt=first.prompt, cached=first.cached if fresh else first.prompt)
    completions = []
    for place in places:
        completion = replayed.get(place) or fresh[place]
        generated = completion.usage.generated
        usage = replace(
            opening if place == places[0] else Usage(), generated=generated, replayed=generated * (place in replayed)
        )
        completions.append(replace(completion, usage=usage))
    return completions


def _event(completion: Completion, index: int) -> TokenEvent:
    assert completion.raw_logprobs is not None
    return TokenEvent(
        sample=completion.sample,
        index=index,
        token=completion.tokens[index],
        logprob=completion.raw_logprobs[index],
        top_logprobs=completion.top_logprobs[index] if completion.top_logprobs is not None else (),
    )


def _first(values: Any, n: int) -> Any:
    return None if values is None else values[:n]


def _told(prompt: Prompt) -> dict[str, Any]:
    """Return JSON values that say what a prompt is, as the engine reads it; a `cue` is asked for by a call of its own."""
    messages = [message.to_dict() for message in prompt.messages]
    return {"messages": messages, "opening": prompt.opening, "pieces": [_plain(piece) for piece in prompt.pieces]}


def _plain(piece: str | Completion) -> Any:
    """Return JSON values that say what a text is; one that an engine wrote is its text and its token ids."""
    return piece if isinstance(piece, str) else {"text": piece.text, "tokens": list(piece.tokens)}
