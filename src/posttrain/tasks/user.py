"""A task of one's own, described in YAML over rows in a file or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..core.config import Strict, load_yaml
from ..core.errors import ConfigError
from ..core.specs import Spec, format_spec
from ._sources import SPLITS, hold_out, only, row_sources, splits_in
from .extraction import Kind
from .table import Columns, Grade, Table

__all__ = ["BENCHMARKS", "TaskFile", "benchmark_about", "load_benchmark", "load_user_task"]

BENCHMARKS = Path(__file__).parent / "benchmarks"  # tasks that ship with the package

_INSTRUCTIONS: dict[str, str] = {
    "number": 'Finish with a line "Answer: " followed by the final answer as a number.',
    "choice": 'Finish with a line "Answer: " followed by the letter of the right choice.',
    "boxed": "Put the final answer in \\boxed{}.",
    "line": 'Finish with a line "Answer: " followed by the final answer.',
    "label": 'Finish with a line "Answer: " followed by {labels}.',
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
    label, last_line, text, or {regex: PATTERN}; `grade` one of exact, number, maths, choice. Paths are relative to the
    YAML file.
    """

    name: str
    about: str = ""
    data: str | None = None
    splits: Splits | None = None
    split: str | None = None  # of one file, the column that says which split a row belongs to
    test_share: float | None = Field(default=None, gt=0, lt=1)  # of one file, how many of its rows are the test split
    question: str = "question"
    answer: str = "answer"
    messages: str | None = None  # instead of question and answer: a conversation, answered by the assistant's last turn
    rationale: str | None = None
    choices: str | None = None
    id: str | None = None
    instruction: str | None = None
    extract: Literal["number", "choice", "boxed", "line", "label", "last_line", "text"] | Regex = "line"
    labels: list[str] = Field(default_factory=list)  # of `extract: label`, or what `line` shortens a line to
    grade: Grade = "exact"
    max_tokens: int = 512

    @model_validator(mode="after")
    def _check(self) -> TaskFile:
        if self.data is not None and self.splits is not None:
            raise ValueError("give either 'data' or 'splits', not both")
        if self.test_share is not None and (self.split or self.splits) is not None:
            raise ValueError("'test_share' is of one file whose rows say no split: leave out 'split' and 'splits'")
        if self.messages is not None and {"question", "answer"} & self.model_fields_set:
            raise ValueError("give either 'messages', a conversation with its reply, or 'question' and 'answer', not both")
        if (self.grade == "choice") != (self.extract == "choice"):
            raise ValueError("'extract: choice' and 'grade: choice' belong together")
        if (self.extract == "label") > bool(self.labels) or (self.labels and self.extract not in ("label", "line")):
            raise ValueError("'extract: label' needs 'labels', a list, and only 'label' and 'line' take them")
        if self.max_tokens < 1:
            raise ValueError("'max_tokens' must be at least 1")
        return self


def load_benchmark(name: str, wanted: Mapping[str, Any], *, data: str | Path | None = None) -> Table:
    """Return a task that ships with the package; `wanted` keeps the rows whose columns have these values."""
    if data is None:
        raise ConfigError(f"task '{name}': say where its rows are with --data (in a recipe: data), a file or a hub id")
    return load_user_task(BENCHMARKS / f"{name}.yaml", data=data, wanted=wanted)


def benchmark_about(path: Path) -> str:
    """Return what a task that ships with the package says of itself."""
    return load_yaml(TaskFile, path).about


def load_user_task(path: Path, *, data: str | Path | None = None, wanted: Mapping[str, Any] | None = None) -> Table:
    """Return the task that a YAML file describes; `data` replaces where its rows come from, `wanted` keeps some of them."""
    file = load_yaml(TaskFile, path)
    how: dict[str, Any] = {"name": file.name}
    if file.test_share is not None:
        how["of_one_file"] = partial(hold_out, share=file.test_share, asked=_asked_in(file))
    if data is not None:
        sources = row_sources(data, **how)
    elif file.splits is not None:
        places = {split: place for split in SPLITS if (place := getattr(file.splits, split)) is not None}
        sources = row_sources(places, **how, folder=path.parent)
    elif file.data is not None:
        sources = row_sources(file.data, **how, folder=path.parent)
    else:
        raise ConfigError(
            f"{path}: say where the rows are: 'data: FILE', 'splits: {{train: FILE, test: FILE}}' or --data FILE"
        )
    if file.split is not None:
        sources = splits_in(sources, file.split, file.name)
    kind: Kind = "regex" if isinstance(file.extract, Regex) else file.extract
    instruction = _INSTRUCTIONS.get(kind, "").replace("{labels}", _listed(file.labels))
    return Table(
        format_spec(Spec(file.name, wanted or {})),
        only(sources, wanted, file.name) if wanted else sources,
        columns=Columns(
            question=file.question,
            answer=file.answer,
            messages=file.messages,
            rationale=file.rationale,
            choices=file.choices,
            id=file.id,
        ),
        extract=kind,
        pattern=file.extract.regex if isinstance(file.extract, Regex) else "",
        labels=file.labels,
        grade=file.grade,
        instruction=instruction if file.instruction is None else file.instruction,
        max_tokens=file.max_tokens,
    )


def _asked_in(file: TaskFile) -> Callable[[Mapping[str, Any]], str]:
    """Return what tells of a row whether it asks the same as another."""
    template = file.messages or file.question
    names = re.findall(r"\{(\w+)\}", template) or [template]
    return lambda row: json.dumps([row.get(name) for name in names], default=str)


def _listed(labels: list[str]) -> str:
    """Return "a, b or c"."""
    return " or ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else "".join(labels)
