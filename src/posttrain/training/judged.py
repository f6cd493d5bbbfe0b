"""Scored responses, read from rows: `{"prompt", "responses", "scores"}` and their shorter forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from ..core.types import Message
from .opening import messages_of

__all__ = ["Judged", "read_judged"]

_SHAPES = "expected 'prompt', 'responses' and 'scores' (two lists of one length), or 'prompt', 'completion' and 'score'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A response and its score. `prompt` numbers the prompts: rows that ask the same thing count as one."""

    row: int
    prompt: int
    messages: tuple[Message, ...]
    response: str
    score: float


def read_judged(data: Sequence[Mapping[str, Any]], where: Callable[[int], str] = "row {}".format) -> list[Judged]:
    """Return every scored response of the rows, in order; a broken row is a `DataError` that names it."""
    found: list[Judged] = []
    numbers: dict[tuple[Message, ...], int] = {}
    for row, values in enumerate(data):
        try:
            messages, responses, scores = _parts(values)
        except DataError as error:
            raise DataError(f"{where(row)}: {error}") from None
        prompt = numbers.setdefault(messages, len(numbers))
        found += [
            Judged(row=row, prompt=prompt, messages=messages, response=response, score=score)
            for response, score in zip(responses, scores, strict=True)
        ]
    return found


def _parts(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], list[str], list[float]]:
    if "messages" in row and "score" in row:
        *prompt, last = messages_of(row["messages"], "messages")
        if last.role != "assistant" or not prompt:
            raise DataError("the conversation must end with the assistant's response to a prompt")
        return tuple(prompt), [last.content], [_score(row["score"])]
    if "prompt" in row and "responses" in row and "scores" in row:
        responses, scores = row["responses"], row["scores"]
        if not isinstance(responses, list | tuple) or not isinstance(scores, list | tuple) or not responses:
            raise DataError(_SHAPES)
        if len(responses) != len(scores):
            raise DataError(f"has {len(responses)} responses but {len(scores)} scores")
    elif "prompt" in row and "completion" in row and "score" in row:
        responses, scores = [row["completion"]], [row["score"]]
    else:
        raise DataError(f"{_SHAPES}; found {', '.join(sorted(row))}")
    if not all(isinstance(response, str) for response in responses):
        raise DataError("a response must be a text")
    return tuple(messages_of(row["prompt"], "prompt")), list(responses), [_score(score) for score in scores]


def _score(value: Any) -> float:
    try:
        score = float(value)  # a CSV file's numbers are text
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"a score must be a finite number, not {value!r:.60}")
    return score
