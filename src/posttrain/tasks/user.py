"""A task of one's own, described in YAML over rows in a file or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from ..core.config import Strict, load_yaml
from ..core.errors import ConfigError
from ._sources import SPLITS, row_sources
from .extraction import Kind
from .table import Columns, Grade, Table

__all__ = ["TaskFile", "load_user_task"]

_INSTRUCTIONS: dict[str, str] = {
    "number": 'Finish with a line "Answer: " followed by the final answer as a number.',
    "choice": 'Finish with a line "Answer: " followed by the letter of the right choice.',
    "boxed": "Put the final answer in \\boxed{}.",
    "line": 'Finish with a line "Answer: " followed by the final answer.',
}


class Regex(Strict):
    """`extract: {regex: PATTERN}`: the first group (or the whole) of the last match."""

    regex: str


class Splits(Strict):
    """A file, folder or hub id per split."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


class TaskFile(Strict):
    """The keys of a task's YAML file.

    `question` is a column or a format string ("{context} {question}"); `extract` one of number, choice, boxed, line,
    last_line, text, or {regex: PATTERN}; `grade` one of exact, number, maths, choice. Paths are relative to the YAML file.
    """

    name: str
    data: str | None = None
    splits: Splits | None = None
    question: str = "question"
    answer: str = "answer"
    rationale: str | None = None
    choices: str | None = None
    id: str | None = None
    instruction: str | None = None
    extract: Literal["number", "choice", "boxed", "line", "last_line", "text"] | Regex = "line"
    grade: Grade = "exact"
    max_tokens: int = 512

    @model_validator(mode="after")
    def _check(self) -> TaskFile:
        if self.data is not None and self.splits is not None:
            raise ValueError("give either 'data' or 'splits', not both")
        if (self.grade == "choice") != (self.extract == "choice"):
            raise ValueError("'extract: choice' and 'grade: choice' belong together")
        if self.max_tokens < 1:
            raise ValueError("'max_tokens' must be at least 1")
        return self


def load_user_task(path: Path, *, data: str | Path | None = None) -> Table:
    """Return the task that a YAML file describes; `data` replaces where its rows come from."""
    file = load_yaml(TaskFile, path)
    if data is not None:
        sources = row_sources(data, name=file.name)
    elif file.splits is not None:
        places = {split: place for split in SPLITS if (place := getattr(file.splits, split)) is not None}
        sources = row_sources(places, name=file.name, folder=path.parent)
    elif file.data is not None:
        sources = row_sources(file.data, name=file.name, folder=path.parent)
    else:
        raise ConfigError(
            f"{path}: say where the rows are: 'data: FILE', 'splits: {{train: FILE, test: FILE}}' or --data FILE"
        )
    kind: Kind = "regex" if isinstance(file.extract, Regex) else file.extract
    return Table(
        file.name,
        sources,
        columns=Columns(
            question=file.question, answer=file.answer, rationale=file.rationale, choices=file.choices, id=file.id
        ),
        extract=kind,
        pattern=file.extract.regex if isinstance(file.extract, Regex) else "",
        grade=file.grade,
        instruction=_INSTRUCTIONS.get(kind, "") if file.instruction is None else file.instruction,
        max_tokens=file.max_tokens,
    )
