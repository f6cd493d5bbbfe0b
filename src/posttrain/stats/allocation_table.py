"""The table of a compute-optimal allocation: what to do for which difficulty, as a value and as a file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.errors import ConfigError

__all__ = ["Difficulty", "Row", "Rule", "Table", "parse_table"]

KIND = "posttrain allocation"
VERSION = 1
Rule = Literal["majority", "weighted", "best"]
Difficulty = Literal["entropy", "score", "agreement", "accepted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What to do for questions up to a difficulty (None: all harder ones), and what the calibration questions showed."""

    upto: float | None
    rule: Rule
    n: int
    share: float
    accuracy: float
    tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """An allocation: rows from easy to hard, with the expectation on the questions it was fitted on (which flatters it)."""

    pilot: int
    difficulty: Difficulty
    verifier: str | None
    rows: tuple[Row, ...]
    accuracy: float
    tokens: float
    questions: int
    accept: float = 1.0  # with difficulty "accepted": the score that accepts a sample

    @property
    def scored(self) -> bool:
        """Whether the pilot's difficulty is told by a verifier's scores."""
        return self.difficulty in ("score", "accepted")

    def row(self, difficulty: float) -> tuple[int, Row]:
        """Return the row for a difficulty and its place."""
        return next((i, row) for i, row in enumerate(self.rows) if row.upto is None or difficulty <= row.upto)

    def to_json(self) -> str:
        """Return the table as the text of its file."""
        return json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=2, allow_nan=False) + "\n"


def parse_table(text: str, where: str) -> Table:
    """Read what `Table.to_json` wrote; raises `ConfigError` that says what is wrong with the file."""
    mend = "make one with posttrain curve --strategy compute_optimal, or posttrain.stats.allocation.fit"
    try:
        values: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"allocation table {where} is not JSON ({error}): {mend}") from None
    if not isinstance(values, dict) or values.pop("kind", None) != KIND:
        raise ConfigError(f'{where} is not an allocation table (no "kind": "{KIND}"): {mend}')
    version = values.pop("version", None)
    if version != VERSION:
        raise ConfigError(f"allocation table {where} has version {version}, this program reads {VERSION}: fit it again")
    try:
        rows = tuple(Row(**row) for row in values.pop("rows"))
        table = Table(rows=rows, **values)
        edges = [math.inf if row.upto is None else float(row.upto) for row in rows]
        good = bool(rows) and edges == sorted(set(edges)) and edges[-1] == math.inf and table.pilot >= 1
        good = good and all(row.n >= table.pilot and row.rule in ("majority", "weighted", "best") for row in rows)
        good = good and table.difficulty in ("entropy", "score", "agreement", "accepted")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"allocation table {where} is damaged ({error}): fit it again") from None
    if not good:
        raise ConfigError(
            f"allocation table {where} is damaged: its rows must have growing 'upto' (null for the last), a known 'rule' "
            "and 'n' of at least 'pilot'; fit it again"
        )
    return table
