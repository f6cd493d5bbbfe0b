"""Rows on their way to a trainer: brought into its shapes; the scores of judged responses stay for those that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import DataError
from .examples import example_of
from .formats import training_rows
from .turns import read_prompt

__all__ = ["rows_for", "rows_with_scores"]


def rows_for(trainer: Any, rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return rows of any known shape as a trainer takes them; one that asks questions (`asks`) takes them as they are."""
    if getattr(trainer, "asks", False):
        return [dict(row) for row in rows]
    return rows_with_scores(rows, where) if getattr(trainer, "scored", False) else training_rows(rows, where)


def rows_with_scores(rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return rows as `training_rows` does, but keep `score`, `subset` and a `label` of true or false, and rows with `scores`
    as they are, and so the questions of online reinforcement learning.

    Raises `DataError` when only some rows have the lists, or an example.
    """
    if any("example" in row for row in rows):
        for number, row in enumerate(rows, start=1):
            example_of(row, f"{where}, row {number}")
            read_prompt(row.get("prompt"), f"{where}, row {number}, 'prompt'")
        return [dict(row) for row in rows]
    lists = [{"responses", "scores"} <= row.keys() for row in rows]
    if all(lists):
        return [dict(row) for row in rows]
    if any(lists):
        raise DataError(
            f"{where}, row {1 + lists.index(False)}: no 'responses' and 'scores', which other rows have: give all rows one "
            "shape"
        )
    made = training_rows(rows, where)
    return [{**new, **_judgement(old)} for new, old in zip(made, rows, strict=True)]


def _judgement(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in ("score", "subset") if name in row}
    return found | ({"label": row["label"]} if isinstance(row.get("label"), bool) else {})
