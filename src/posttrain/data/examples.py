"""Examples inside rows: what grading a reply needs of a question, as JSON and back, for training on replies as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core.errors import DataError, did_you_mean
from ..core.types import Example
from .turns import read_messages, show

__all__ = ["example_of", "example_row"]

_FIELDS = ("id", "question", "messages", "choices", "meta", "answer", "gold")  # not the rationale: grading needs none
_TUPLE, _PAIRS = "$tuple", "$pairs"  # what JSON has no form for: {"$tuple": [values]}, {"$pairs": [[key, value]]}


def example_row(example: Example) -> dict[str, Any]:
    """Return an example without its rationale as JSON values; empty fields are left out.

    Tuples and dictionaries whose keys are no texts, which graders' own facts hold, come back as such.
    Raises `DataError` for what cannot be written.
    """
    values: dict[str, Any] = {
        "id": example.id,
        "question": example.question,
        "messages": [message.to_dict() for message in example.messages],
        "choices": list(example.choices),
        "meta": {key: _written(value, f"example '{example.id}', meta, {key}") for key, value in example.meta.items()},
        "answer": example.answer,
        "gold": {key: _written(value, f"example '{example.id}', gold, {key}") for key, value in example.gold.items()},
    }
    return {key: value for key, value in values.items() if value or key == "id" or (key == "answer" and value is not None)}


def example_of(row: Mapping[str, Any], where: str = "row") -> Example:
    """Return the example that a row of the data maker `questions` holds; raises `DataError` that names what is missing."""
    held = row.get("example")
    if not isinstance(held, Mapping):
        raise DataError(
            f"{where}: no 'example' with what grading needs (id, question, answer, …), as the data maker 'questions' writes "
            f"it: {show(row)}"
        )
    where = f"{where}, 'example'"
    for key in held:
        if key not in _FIELDS:
            raise DataError(f"{where}: unknown key '{key}'{did_you_mean(str(key), _FIELDS)}")
    for key, kind, what in (
        ("id", str, "a text"), ("question", str, "a text"), ("answer", str, "a text"),
        ("choices", list | tuple, "a list of texts"), ("meta", Mapping, "a mapping"), ("gold", Mapping, "a mapping"),
    ):  # fmt: skip
        if held.get(key) is not None and not isinstance(held[key], kind):
            raise DataError(f"{where}: '{key}' must be {what}, not {show(held[key])}")
    if not held.get("id"):
        raise DataError(f"{where}: no 'id', by which verifiers find its gold answer: {show(held)}")
    if not held.get("question") and not held.get("messages"):
        raise DataError(f"{where}: neither a 'question' nor 'messages': {show(held)}")
    choices = tuple(held.get("choices") or ())
    if not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: 'choices' must be a list of texts, not {show(held['choices'])}")
    return Example(
        id=held["id"],
        question=held.get("question") or "",
        messages=read_messages(held["messages"], f"{where}, 'messages'") if held.get("messages") else (),
        choices=choices,
        meta={key: _read(value) for key, value in (held.get("meta") or {}).items()},
        answer=held.get("answer"),
        gold={key: _read(value) for key, value in (held.get("gold") or {}).items()},
    )


def _written(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, tuple):
        return {_TUPLE: [_written(item, where) for item in value]}
    if isinstance(value, list):
        return [_written(item, where) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not {_TUPLE, _PAIRS} & value.keys():
            return {key: _written(item, where) for key, item in value.items()}
        return {_PAIRS: [[_written(key, where), _written(item, where)] for key, item in value.items()]}
    raise DataError(f"{where}: a value of type {type(value).__name__} cannot be written into a row: {value!r:.60}")


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(_read(item) for item in value[_TUPLE])
    if value.keys() == {_PAIRS}:
        return {_read(key): _read(item) for key, item in value[_PAIRS]}
    return {key: _read(item) for key, item in value.items()}
