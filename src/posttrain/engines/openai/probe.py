"""What a server can do, found by asking it: about ten tiny requests when it is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.errors import ConfigError, PosttrainError, ServerError, did_you_mean
from .settings import Server
from .transport import RefusedError, Transport
from .wire import NEUTRAL, Features, usage_of

__all__ = ["probe"]

CHAT = "/chat/completions"
_ASKED = [{"role": "user", "content": "Count from one to twenty in words."}]
_WORD = "1"  # one token of nearly every vocabulary


async def probe(transport: Transport, server: Server) -> tuple[str, Features]:
    """Return the model's name and what the server can do; raises a sentence when it cannot be used at all."""
    listed = await _listed(transport)
    model = server.model or _only(listed, transport.url)
    asker = _Asker(transport, model, server)
    features, first = await asker.fields(listed)
    usage_of(first, transport.url)
    served = str(first.get("model") or model)
    features = replace(features, served=served, logprobs=_has_logprobs(first))
    asker.features = features
    features = replace(features, stops=await asker.stops(_text(first)))
    features = replace(features, **await asker.prefix())
    return model, replace(features, **await asker.stream())


async def _listed(transport: Transport) -> list[str]:
    """Return the names of the models that the server lists; none when it has no list."""
    try:
        found = await transport.get("/models")
    except RefusedError:
        return []
    rows = found.get("data") if isinstance(found, dict) else None
    return [str(row["id"]) for row in rows or [] if isinstance(row, dict) and "id" in row]


def _only(listed: list[str], url: str) -> str:
    if len(listed) == 1:
        return listed[0]
    have = f"; it lists: {', '.join(sorted(listed)[:10])}" if listed else ", and it lists none"
    raise ConfigError(f"model 'openai': name the model, as in openai:NAME, since {url} has not just one{have}")


class _Asker:
    """Sends the probing requests; each is greedy and a few tokens long."""

    def __init__(self, transport: Transport, model: str, server: Server) -> None:
        self._transport = transport
        self._model = model
        self._more = server.more
        self.features = Features()

    async def ask(self, *, tokens: int = 8, said: str | None = None, **more: Any) -> Mapping[str, Any]:
        accepted = self.features.accepted
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _ASKED if said is None else [*_ASKED, {"role": "assistant", "content": said}],
            self.features.limit: tokens,
            **{name: value for name, value in NEUTRAL.items() if name in accepted},
            **more,
            **self._more,
        }
        answer = await self._transport.post(CHAT, body, seed=0, retries=2)
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise ServerError(f"{self._transport.url}{CHAT} answered without choices: is this an OpenAI-compatible server?")
        return answer

    async def fields(self, listed: list[str]) -> tuple[Features, Mapping[str, Any]]:
        """Find the optional fields that the server takes: all at once, or else one by one."""
        wanted: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}
        try:
            return self.features, await self.ask(**wanted)
        except RefusedError:
            pass
        self.features = Features(accepted=frozenset())
        try:
            answer = await self.ask()
        except RefusedError as refused:
            self.features = replace(self.features, limit="max_completion_tokens")
            try:
                answer = await self.ask()
            except RefusedError:
                raise self._unusable(refused, listed) from None
        for name in NEUTRAL:
            before = self.features
            self.features = replace(before, accepted=before.accepted | {name})
            try:
                answer = await self.ask()
            except RefusedError:
                self.features = before
        with contextlib.suppress(RefusedError):
            answer = await self.ask(**wanted)
        return self.features, answer

    def _unusable(self, refused: RefusedError, listed: list[str]) -> PosttrainError:
        if self._model in listed or refused.status not in (400, 404, 422):
            return refused
        if not listed and refused.status == 404:
            return ServerError(
                f"{refused}: there is no model '{self._model}', or no chat endpoint at this URL (it usually ends with /v1)"
            )
        if not listed:
            return refused
        near = did_you_mean(self._model, listed)
        return ServerError(f"{self._transport.url} has no model '{self._model}'{near} ({refused})")

    async def stops(self, text: str) -> Any:
        """Find whether an answer that a stop string ended can be told from one that ended of itself."""
        middle = next((n for n in range(len(text) // 2, len(text)) if not text[n].isspace()), None)
        if middle is None:
            return "hidden"  # nothing was written, so nothing can be found
        stop = text[middle]
        try:
            answer = await self.ask(stop=[stop])
        except RefusedError:
            return "hidden"
        if stop in _text(answer):
            return "kept"
        return "named" if answer["choices"][0].get("stop_reason") == stop else "hidden"

    async def prefix(self) -> dict[str, Any]:
        """Find whether a begun answer is continued: then it costs its own tokens and no more.

        A turn that is closed and followed by a new one costs the template's marks too.
        """
        flags = {"add_generation_prompt": False, "continue_final_message": True}
        try:
            bare = usage_of(await self.ask(tokens=1), "").prompt
        except PosttrainError:
            return {}
        for kind, fields in (("flags", flags), ("nature", {})):
            try:
                begun = usage_of(await self.ask(tokens=1, said=_WORD, **fields), "").prompt
                spaced = usage_of(await self.ask(tokens=1, said=f"{_WORD}\n\n", **fields), "").prompt
            except PosttrainError:
                continue
            if begun == bare + 1:
                natural = kind == "flags" and await self._natural(begun)
                return {"prefix": "nature" if natural else kind, "trims": spaced == begun}
        return {}

    async def _natural(self, begun: int) -> bool:
        """Return whether the flags changed nothing, so that the server continues by itself."""
        try:
            return usage_of(await self.ask(tokens=1, said=_WORD), "").prompt == begun
        except PosttrainError:
            return False

    async def stream(self) -> dict[str, Any]:
        """Find whether answers are streamed, and whether a stream says what it used."""
        for options in ({"stream_options": {"include_usage": True}}, {}):
            body = {
                "model": self._model,
                "messages": _ASKED,
                self.features.limit: 4,
                "stream": True,
                **{name: value for name, value in NEUTRAL.items() if name in self.features.accepted},
                **options,
                **self._more,
            }
            try:
                events = [event async for event in self._transport.stream(CHAT, body, seed=0)]
            except PosttrainError:
                continue
            if any(event.get("choices") for event in events if isinstance(event, dict)):
                return {"stream": True, "stream_usage": bool(options)}
        return {}


def _text(answer: Mapping[str, Any]) -> str:
    return str((answer["choices"][0].get("message") or {}).get("content") or "")


def _has_logprobs(answer: Mapping[str, Any]) -> bool:
    """Return whether the tokens' log-probabilities are there and their bytes make up the text."""
    told = answer["choices"][0].get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not content or not all(isinstance(entry, dict) and "logprob" in entry for entry in content):
        return False
    joined = b"".join(bytes(entry["bytes"]) if entry.get("bytes") else str(entry.get("token")).encode() for entry in content)
    return joined.startswith(_text(answer).encode())
