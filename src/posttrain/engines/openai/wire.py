"""From a prompt to a request, and from an answer to completions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.errors import CapabilityError, ServerError
from ...core.types import Completion, Finish, Prompt, Sampling, Usage

__all__ = [
    "NEUTRAL", "Features", "body_of", "completion_of", "entries_of", "is_entry_of", "messages_of", "sampled", "shared",
    "usage_of",
]  # fmt: skip

NEUTRAL: Mapping[
    str, Any
] = {  # a server's own defaults (vLLM takes the model's, llama.cpp has its own) must not show through
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed": 1,
}
_FINISH: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
    "content_filter": "cancelled",
    "abort": "cancelled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What probing has found of a server.

    `accepted` are the optional fields it takes. `stops`: "kept" when a stop string stays in the text, "named" when the
    answer says which one ended it, "hidden" when neither: it cannot be told from the end of the turn, so stop strings are
    not sent and the text is cut here. `prefix`: how the assistant's turn is continued, by "flags" or by "nature"; `trims`
    when white space at the end of what is continued gets lost.
    """

    accepted: frozenset[str] = frozenset(NEUTRAL)
    limit: str = "max_tokens"
    logprobs: bool = False
    stream: bool = False
    stream_usage: bool = False
    stops: Literal["kept", "named", "hidden"] = "hidden"
    prefix: Literal["flags", "nature"] | None = None
    trims: bool = False
    served: str = ""


def messages_of(prompt: Prompt, features: Features) -> tuple[list[dict[str, str]], dict[str, bool]]:
    """Return the messages, the begun turn of the assistant last, and the fields that say to continue it."""
    messages = [message.to_dict() for message in prompt.messages]
    opening = prompt.begun
    if not opening:
        return messages, {}
    if features.prefix is None:
        raise CapabilityError("this server does not continue a begun answer (its chat endpoint starts a new turn)")
    messages.append({"role": "assistant", "content": opening.rstrip() if features.trims else opening})
    return messages, {"add_generation_prompt": False, "continue_final_message": True} if features.prefix == "flags" else {}


def body_of(prompt: Prompt, sampling: Sampling, features: Features, *, seed: int) -> dict[str, Any]:
    """Return the request; raises `CapabilityError` for a setting that the server refuses."""
    messages, flags = messages_of(prompt, features)
    wanted: dict[str, Any] = {**NEUTRAL, "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
    if sampling.top_k:
        wanted["top_k"] = sampling.top_k
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}  # what a server does that does not take the field
    for name, value in usual.items():
        idle = name != "temperature" and sampling.temperature == 0  # says nothing about a greedy choice
        if name not in features.accepted and wanted[name] != value and not idle:
            raise CapabilityError(f"this server does not take '{name}', and {name}={wanted[name]:g} is asked for")
    body = {name: value for name, value in wanted.items() if name in features.accepted}
    body |= {"messages": messages, features.limit: sampling.max_tokens, **flags}
    if sampling.stop and features.stops != "hidden":
        body["stop"] = list(sampling.stop)
    if features.logprobs:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    elif sampling.logprobs:
        raise CapabilityError("log-probabilities are asked for, which this server does not give")
    return body


def usage_of(answer: Mapping[str, Any], where: str) -> Usage:
    """Return the usage as the server reports it; raises `ServerError` when it reports none."""
    told = answer.get("usage")
    if not isinstance(told, dict) or not isinstance(told.get("prompt_tokens"), int):
        raise ServerError(f"{where} reports no token usage, so that nothing it does could be metered: use another server")
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt = told["prompt_tokens"]
    return Usage(
        calls=1, prompt=prompt, cached=min(int(cached or 0), prompt), generated=int(told.get("completion_tokens") or 0)
    )


def completion_of(
    choice: Mapping[str, Any], prompt: Prompt, sampling: Sampling, features: Features, *, sample: int, usage: Usage
) -> Completion:
    """Return one choice of an answer as a completion.

    `raw_logprobs` are the server's; under the sampling distribution they are known where it equals the model's own
    (temperature 1, nothing cut off) or where it is greedy. Token ids are names made from the tokens' bytes unless the
    server gives ids.
    """
    message = choice.get("message")
    text = str((message or {}).get("content") or "") if isinstance(message, dict | None) else ""
    lost = _lost(prompt.begun, text) if features.trims else 0
    text = text[lost:]
    finish = _FINISH.get(str(choice.get("finish_reason")), "stop")
    whole, stopped_by = text, None
    found = [(at, stop) for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if found:
        at, stopped_by = min(found, key=lambda pair: pair[0])
        finish, text = "stop", text[: at + len(stopped_by) * sampling.keep_stop]
    elif choice.get("stop_reason") in sampling.stop:
        stopped_by = str(choice["stop_reason"])
        text += stopped_by * sampling.keep_stop
    entries = entries_of(choice)[_covering(entries_of(choice), lost) :]
    kept = _covering(entries, len(text.encode()))
    known = features.logprobs and kept <= len(entries)
    raw = tuple(float(entry["logprob"]) for entry in entries[:kept])
    ended = finish == "stop" and stopped_by is None and text == whole and len(entries) == kept + 1
    return Completion(
        text=text,
        tokens=tuple(_id(entry) for entry in entries[:kept]),
        logprobs=sampled(raw, sampling) if known else None,
        raw_logprobs=raw if known else None,
        top_logprobs=tuple(_top(entry, sampling.logprobs) for entry in entries[:kept])
        if known and sampling.logprobs
        else None,
        end_logprob=float(entries[kept]["logprob"]) if known and ended else None,
        finish=finish,
        stopped_by=stopped_by,
        sample=sample,
        usage=usage,
    )


def shared(generated: int, choices: Sequence[Mapping[str, Any]]) -> list[int]:
    """Split the tokens of an answer over its choices: by their log-probabilities' count where given, else by length.

    The parts add up to the whole.
    """
    weights = [len(entries_of(choice)) for choice in choices]
    if not all(weights):
        weights = [len(str((choice.get("message") or {}).get("content") or "").encode()) + 1 for choice in choices]
    total, parts, given, seen = sum(weights), [], 0, 0
    for weight in weights:
        seen += weight
        until = generated * seen // total
        parts.append(until - given)
        given = until
    return parts


def entries_of(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what the answer says of each token: its text, its bytes, its log-probability."""
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    return [entry for entry in content or [] if isinstance(entry, dict) and isinstance(entry.get("logprob"), int | float)]


def _bytes(entry: Mapping[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry.get("token", "")).encode()


def is_entry_of(entry: Mapping[str, Any], text: str) -> bool:
    """Whether an entry is of the token with this text."""
    return entry.get("token") == text or _bytes(entry) == text.encode()


def _covering(entries: Sequence[Mapping[str, Any]], length: int) -> int:
    """Return how many leading tokens lie wholly within so many bytes of text."""
    end = 0
    for at, entry in enumerate(entries):
        end += len(_bytes(entry))
        if end > length:
            return at
    return len(entries)


def _id(entry: Mapping[str, Any]) -> int:
    if isinstance(entry.get("id"), int):
        return int(entry["id"])
    return int.from_bytes(hashlib.blake2b(_bytes(entry), digest_size=4).digest(), "little")


def _top(entry: Mapping[str, Any], k: int) -> tuple[tuple[int, float], ...]:
    likely = [other for other in entry.get("top_logprobs") or [] if isinstance(other, dict)]
    return tuple((_id(other), float(other["logprob"])) for other in likely[:k])


def sampled(raw: tuple[float, ...], sampling: Sampling) -> tuple[float, ...] | None:
    """Return the log-probabilities under the distribution that was sampled from, where these follow from the model's own."""
    if sampling.temperature == 0:
        return (0.0,) * len(raw)
    return raw if sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0 else None


def _lost(opening: str, text: str) -> int:
    """Return how much of the text's start is white space that was trimmed off the opening and written anew."""
    space = opening[len(opening.rstrip()) :]
    n = 0
    while n < min(len(space), len(text)) and space[n] == text[n]:
        n += 1
    return n
