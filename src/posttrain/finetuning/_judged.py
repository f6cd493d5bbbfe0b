"""Scored responses: reading them from rows, and choosing or weighing the ones to learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..core.errors import DataError
from ..core.types import Message
from ..losses.judged import reward_weights
from ..training.opening import messages_of

__all__ = ["Judged", "best", "filtered", "need_choice", "read_judged", "weights"]

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


def best(found: Sequence[Judged]) -> list[Judged]:
    """Return each prompt's response with the highest score, the first of equal ones."""
    top: dict[int, Judged] = {}
    for judged in found:
        if judged.prompt not in top or judged.score > top[judged.prompt].score:
            top[judged.prompt] = judged
    return list(top.values())


def filtered(found: Sequence[Judged], threshold: float, of: str = "") -> list[Judged]:
    """Return the responses whose score is at least the threshold; none is a `DataError`."""
    kept = [judged for judged in found if judged.score >= threshold]
    if not kept:
        highest = max((judged.score for judged in found), default=math.nan)
        raise DataError(
            f"no response{of} has a score of at least threshold = {threshold:g} (the highest is {highest:g}): lower it"
        )
    return kept


def weights(found: Sequence[Judged], *, beta: float, over: Literal["prompt", "data"]) -> list[float]:
    """Return each response's weight, exp(score / beta) normalised to a mean of 1 (see `reward_weights`)."""
    scores_N = torch.tensor([judged.score for judged in found], dtype=torch.double)
    prompts_N = torch.tensor([judged.prompt for judged in found])
    values: list[float] = reward_weights(scores_N, prompts_N, beta=beta, over=over).tolist()
    return values


def need_choice(found: Sequence[Judged], mode: str) -> None:
    """Raise `DataError` when no prompt has two responses, so that there is nothing to compare."""
    if len({judged.prompt for judged in found}) == len(found):
        raise DataError(
            f"mode={mode} compares the responses to one prompt, but no prompt has two: use mode=filtered with a threshold, "
            "or mode=weighted with over=data"
        )
