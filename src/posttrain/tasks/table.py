"""A task over rows: which columns to read, how to read an answer from a text, and how to grade it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.types import Example, Message, Role
from .equivalence import answer_key, same_mathematics, same_number
from .extraction import Extractor, Kind, extractor
from .numerals import number
from .wording import LETTERS

__all__ = ["Columns", "Grade", "Table"]

Grade = Literal["exact", "number", "maths", "choice"]
Row = Mapping[str, Any]
_log = logging.getLogger(__name__)
_VERSION = 1  # raised when reading or grading changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where an example's parts are in a row; `question` may be a format string such as "{body} {question}".

    With `messages`, a column of turns, the last turn of the assistant is the answer and what comes before it is asked.
    """

    question: str = "question"
    answer: str = "answer"
    messages: str | None = None
    rationale: str | None = None
    choices: str | None = None
    id: str | None = None


class Table:
    """A task whose examples are rows.

    Args:
        name: the task's name.
        sources: split -> function that reads its rows (called on first use).
        columns: where the parts are.
        extract: the named extractor of `extraction.extractor`; `pattern` belongs to `regex`,
            `labels` to `label` and `line`.
        grade: "exact" (text, ignoring case, spaces and a full stop), "number" (value), "maths" (expressions), "choice"
            (letter).
        instruction: how to give the answer, added to each question.
        max_tokens: the longest reply.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[str, Callable[[], Sequence[Row]]],
        *,
        columns: Columns,
        extract: Kind,
        grade: Grade,
        instruction: str,
        max_tokens: int,
        pattern: str = "",
        labels: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.instruction = instruction
        self.max_tokens = max_tokens
        self._sources = dict(sources)
        self._columns = columns
        self._grade: Grade = grade
        self._settings: list[Any] = [_VERSION, name, extract, pattern, grade, instruction, max_tokens]
        self._kind: Kind = extract
        self._pattern = pattern
        self._labels = tuple(labels)
        if labels:  # later than tasks without, whose versions stay as they were
            self._settings.append(list(labels))
        if extract != "choice":
            self._reader  # noqa: B018  (a broken pattern is said now, not at the first reply)
        self._splits: dict[str, tuple[Example, ...]] = {}

    @cached_property
    def version(self) -> str:
        """A hash of every example of every split and of how answers are read and graded."""
        digest = hashlib.sha256(json.dumps(self._settings).encode())
        for split in sorted(self._sources):
            for e in self.examples(split):
                turns = [[[turn.role, turn.content] for turn in e.messages]] if e.messages else []  # later than the others
                digest.update(json.dumps([split, e.id, e.question, e.choices, e.answer, e.rationale, *turns]).encode())
        return digest.hexdigest()[:12]

    def examples(self, split: str) -> Sequence[Example]:
        """Return the examples of a split; raises `ConfigError` for one this task does not have."""
        if split not in self._sources:
            have = ", ".join(sorted(self._sources))
            raise ConfigError(
                f"task '{self.name}' has no split '{split}' (it has: {have}){did_you_mean(split, self._sources)}: "
                f"give its rows, for example --data train=FILE,test=FILE"
            )
        if split not in self._splits:
            rows = self._sources[split]()
            made = tuple(self._example(row, at) for at, row in enumerate(rows, 1))
            self._splits[split] = _with_unique_ids(made, self.name, split)
        return self._splits[split]

    def extract(self, text: str) -> str | None:
        """Read the answer from a model's text; None when there is none."""
        return self._reader(text)

    def key(self, answer: str) -> str:
        """Return equal strings for equivalent answers."""
        if self._grade == "choice":
            return answer.strip().upper()
        return _folded(answer) if self._grade == "exact" else answer_key(answer)

    def grade(self, example: Example, answer: str | None) -> float:
        """Return 1.0 for a right answer and 0.0 for a wrong or missing one."""
        if answer is None:
            return 0.0
        if example.answer is None:
            raise DataError(f"task '{self.name}': example '{example.id}' has no gold answer to grade against")
        if self._grade == "number":
            return float(same_number(example.answer, answer))
        if self._grade == "maths":
            return float(same_mathematics(example.answer, answer))
        return float(self.key(example.answer) == self.key(answer))

    @cached_property
    def _reader(self) -> Extractor:
        letters = ""
        if self._kind == "choice":  # only as many letters as there are choices: "I" is a letter of nine, else a word
            split = next(split for split in ("test", "validation", "train") if split in self._sources)
            letters = LETTERS[: max(len(example.choices) or 5 for example in self.examples(split))]
        return extractor(self._kind, pattern=self._pattern, letters=letters, labels=self._labels)

    def _example(self, row: Row, at: int) -> Example:
        columns = self._columns
        where = f"task '{self.name}', row {at}"
        if columns.messages:
            turns, answer = _asked_and_answered(_cell(row, columns.messages, where), where)
            question, asked = "", "\n".join(turn.content for turn in turns)
        else:
            question, answer = self._question(row, where), str(_cell(row, columns.answer, where)).strip()
            turns, asked = (), question
        choices = _choices(_cell(row, columns.choices, where), where) if columns.choices else ()
        if self._grade == "choice":
            answer = _letter(answer, choices, where)
        if self._grade == "number" and number(answer) is None:
            raise DataError(
                f"{where}: the answer {answer!r} is not a number, as grade: number needs; use grade: exact or maths"
            )
        rationale = _cell(row, columns.rationale, where) if columns.rationale else None
        return Example(
            id=str(_cell(row, columns.id, where)) if columns.id else _content_id(asked, answer),
            question=question,
            messages=turns,
            choices=choices,
            answer=answer,
            rationale=None if rationale is None else _closed(str(rationale), answer),
            meta={k: v for k in ("subject", "level", "category") if isinstance(v := row.get(k), str | int)},
        )

    def _question(self, row: Row, where: str) -> str:
        template = self._columns.question
        if "{" not in template:
            return _written(_cell(row, template, where)).strip()
        return re.sub(r"\{(\w+)\}", lambda m: _written(_cell(row, m[1], where)), template).strip()


def _cell(row: Row, column: str, where: str) -> Any:
    if column not in row or row[column] is None:
        present = ", ".join(map(str, row))
        what = f"column '{column}' is empty" if column in row else f"no column '{column}'; the columns are: {present}"
        raise DataError(f"{where}: {what}")
    return row[column]


def _written(cell: Any) -> str:
    """Return a cell as text; a list of paragraphs is joined by line breaks."""
    return "\n".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell)


def _asked_and_answered(cell: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """Return the turns before the assistant's last one, and that one's text."""
    if not isinstance(cell, list) or not all(isinstance(turn, Mapping) for turn in cell):
        raise DataError(f"{where}: messages are {cell!r:.80}: a list of turns with 'role' and 'content' is needed")
    if strange := next((turn for turn in cell if turn.get("role") not in get_args(Role)), None):
        raise DataError(f"{where}: a turn has the role {strange.get('role')!r}: use {', '.join(get_args(Role))}")
    turns = [Message(role=turn["role"], content=str(turn.get("content") or "").strip()) for turn in cell]
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.content), default=-1)
    if last < 1 or turns[last - 1].role != "user":
        raise DataError(f"{where}: its messages have no reply of the assistant to a user: remove the row")
    return tuple(turns[:last]), turns[last].content


def _choices(cell: Any, where: str) -> tuple[str, ...]:
    """Read choices from a list, or from a mapping of letters; a leading "A)" is removed."""
    values = list(cell.values()) if isinstance(cell, Mapping) else cell
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise DataError(f"{where}: choices are {cell!r}: a list of two or more is needed")
    if len(values) > 10:
        raise DataError(f"{where}: {len(values)} choices, and at most 10 can be lettered")
    return tuple(re.sub(rf"^\(?{letter}[).:]\s*", "", str(value)) for letter, value in zip(LETTERS, values, strict=False))


def _letter(answer: str, choices: tuple[str, ...], where: str) -> str:
    """Return the letter of a right answer given as letter, as text of a choice, or as number from 0."""
    count = len(choices) or 10
    if len(answer) == 1 and answer.upper() in LETTERS[:count]:
        return answer.upper()
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if answer.isdecimal() and int(answer) < len(choices):
        return LETTERS[int(answer)]
    raise DataError(f"{where}: the answer {answer!r} is no letter, no number from 0 and none of the choices")


def _closed(rationale: str, answer: str) -> str:
    """Return the steps ending with the line "Answer: X", which shots and demonstrations end with."""
    steps = rationale.strip()
    last = steps.rpartition("\n")[2]
    return steps if last.startswith("Answer:") else f"{steps}\nAnswer: {answer}".strip()


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").strip("\"' ")


def _content_id(question: str, answer: str) -> str:
    return hashlib.blake2b(f"{question}\n{answer}".encode(), digest_size=6).hexdigest()


def _with_unique_ids(examples: tuple[Example, ...], name: str, split: str) -> tuple[Example, ...]:
    seen: dict[str, Example] = {}
    kept = []
    for example in examples:
        if example.id in seen:
            if seen[example.id] == example:  # the same row twice counts once
                continue
            raise DataError(f"task '{name}', split '{split}': two different rows have the id '{example.id}'")
        seen[example.id] = example
        kept.append(example)
    if len(kept) < len(examples):
        _log.warning("task '%s', split '%s': %d repeated rows left out", name, split, len(examples) - len(kept))
    return tuple(kept)
