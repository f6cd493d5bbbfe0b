"""Reading judgements out of a row: pairs, rankings, scores, thumbs, judged steps; an unreadable one is a `DataError`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import DataError
from .shapes import Judgement, Preference, Ranking, Scored, Steps, Thumb
from .turns import read_answer, read_messages, read_prompt, read_role, show

__all__ = ["read_judgement", "soft_label"]

_TRUTH = {"true": True, "false": False}  # a CSV file's


def read_judgement(row: Mapping[str, Any], where: str) -> Judgement | None:
    """Return the judgement that a row holds, or None when its keys are not those of one."""
    if "chosen" in row and "rejected" in row:
        return replace(_preference(row, where), margin=_margin(row, where), preference=soft_label(row, where))
    if "prompt" in row and "responses" in row and ("ranks" in row or "scores" in row):
        return _several(row, where)
    if ("steps" in row or "completions" in row) and ("mistake_index" in row or "labels" in row):
        return _steps(row, where)
    label = row.get("label")
    if "prompt" in row and "completion" in row and (isinstance(label, bool) or str(label).lower() in _TRUTH):
        return Thumb(
            prompt=read_prompt(row["prompt"], f"{where}, 'prompt'"),
            completion=read_answer(row["completion"], f"{where}, 'completion'"),
            label=_TRUTH[str(label).lower()],
        )
    return None


def _several(row: Mapping[str, Any], where: str) -> Ranking | Scored:
    name = "ranks" if "ranks" in row else "scores"
    responses, values = row["responses"], row[name]
    if not isinstance(responses, list | tuple) or not isinstance(values, list | tuple) or not responses:
        raise DataError(f"{where}: 'responses' and '{name}' must be two lists: {show(row)}")
    if len(responses) != len(values):
        raise DataError(f"{where}: has {len(responses)} responses but {len(values)} {name}: {show(row)}")
    texts = tuple(read_answer(text, f"{where}, response {i}", empty=True) for i, text in enumerate(responses, start=1))
    prompt = read_prompt(row["prompt"], f"{where}, 'prompt'")
    numbers = tuple(_number(value, f"{where}, '{name}'") for value in values)
    if name == "scores":
        return Scored(prompt=prompt, responses=texts, scores=numbers)
    if any(number != int(number) or number < 1 for number in numbers):
        raise DataError(f"{where}, 'ranks': must be whole numbers from 1, the best: {show(values)}")
    return Ranking(prompt=prompt, responses=texts, ranks=tuple(int(number) for number in numbers))


def _steps(row: Mapping[str, Any], where: str) -> Steps:
    steps = row["steps"] if "steps" in row else row["completions"]  # TRL's name
    asked = next((name for name in ("prompt", "question", "problem") if name in row), None)
    if asked is None:
        raise DataError(f"{where}: steps, but no 'prompt' or 'question': {show(row)}")
    if not isinstance(steps, list | tuple) or not steps:
        raise DataError(f"{where}: the steps must be a list of texts: {show(row)}")
    texts = [read_answer(step, f"{where}, step {i}", empty=True) for i, step in enumerate(steps)]
    prompt = read_prompt(row[asked], f"{where}, '{asked}'")
    if "labels" in row:
        labels = _step_labels(row["labels"], len(texts), where)
    else:
        labels = _until(row["mistake_index"], texts, where)
    kept = [k for k, text in enumerate(texts) if text.strip()]  # no verifier ever sees an empty step
    wrong = next((k for k, label in enumerate(labels) if label is not None and label < 0.5), None)
    if not kept or (wrong is not None and wrong not in kept):
        raise DataError(f"{where}, step {wrong or 0}: is empty, and the first wrong one: {show(row)}")
    return Steps(prompt=prompt, steps=tuple(texts[k] for k in kept), labels=tuple(labels[k] for k in kept))


def _until(first: Any, steps: Sequence[str], where: str) -> tuple[float | None, ...]:
    """Return the labels that the first wrong step's index tells: right before it, nothing behind it."""
    if first is None:
        return (1.0,) * len(steps)
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < len(steps):
        raise DataError(f"{where}, 'mistake_index': must be from 0 to {len(steps) - 1}, or null: {show(first)}")
    return (*(1.0,) * first, 0.0, *(None,) * (len(steps) - first - 1))


def _step_labels(labels: Any, count: int, where: str) -> tuple[float | None, ...]:
    if not isinstance(labels, list | tuple) or len(labels) != count:
        raise DataError(f"{where}, 'labels': must be a list of {count}, one for each step: {show(labels)}")
    found = [
        None if label is None else _number(float(label) if isinstance(label, bool) else label, f"{where}, 'labels'")
        for label in labels
    ]
    if any(label is not None and not 0 <= label <= 1 for label in found):
        raise DataError(f"{where}, 'labels': must be true, false, null, or numbers from 0 to 1: {show(labels)}")
    return tuple(found)


def _margin(row: Mapping[str, Any], where: str) -> float | None:
    """Return the row's margin, or the difference of its two scores (UltraFeedback's columns)."""
    if row.get("margin") is not None:
        return _number(row["margin"], f"{where}, 'margin'")
    sides = [row.get("score_chosen"), row.get("score_rejected")]
    if None in sides:
        return None
    better, worse = (_number(value, f"{where}, 'score_chosen' and 'score_rejected'") for value in sides)
    return better - worse


def soft_label(row: Mapping[str, Any], where: str) -> float | None:
    """Return a pair's `preference`, the probability that `chosen` is the better one; None where the row has none.

    Raises `DataError` unless it is a number from 0 to 1.
    """
    if row.get("preference") is None:
        return None
    label = _number(row["preference"], f"{where}, 'preference'")
    if not 0 <= label <= 1:
        raise DataError(f"{where}, 'preference': must be a probability from 0 to 1, not {label:g}")
    return label


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: must be a finite number, not {value!r:.60}")
    return number


def _preference(row: Mapping[str, Any], where: str) -> Preference:
    chosen, rejected = row["chosen"], row["rejected"]
    whole = [
        isinstance(side, list) and any(read_role(turn, where) != "assistant" for turn in side) for side in (chosen, rejected)
    ]
    if not any(whole):
        if "prompt" not in row:
            raise DataError(f"{where}: no 'prompt', and 'chosen' and 'rejected' are not whole conversations: {show(row)}")
        return Preference(
            prompt=read_prompt(row["prompt"], f"{where}, 'prompt'"),
            chosen=read_answer(chosen, f"{where}, 'chosen'"),
            rejected=read_answer(rejected, f"{where}, 'rejected'", empty=True),  # saying nothing can be the worse answer
        )
    if not all(whole):
        raise DataError(f"{where}: one of 'chosen' and 'rejected' is a whole conversation, the other is not: {show(row)}")
    better, worse = read_messages(chosen, f"{where}, 'chosen'"), read_messages(rejected, f"{where}, 'rejected'")
    if better[:-1] != worse[:-1] or better[-1].role != "assistant" or worse[-1].role != "assistant":
        raise DataError(
            f"{where}: 'chosen' and 'rejected' must be the same conversation up to their last turn, the assistant's: "
            f"{show(row)}"
        )
    prompt = better[:-1]
    if isinstance(row.get("prompt"), str) and not any(row["prompt"].strip() in message.content for message in prompt):
        raise DataError(f"{where}: 'prompt' is not what 'chosen' begins with: {show(row)}")
    return Preference(prompt=prompt, chosen=better[-1].content, rejected=worse[-1].content)
