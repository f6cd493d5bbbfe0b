"""Leaving out rows that cannot be read, where that was asked for, with their number and the first reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from .formats import normalise
from .shapes import Normal

__all__ = ["Readable", "readable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """The rows that can be read, with their shapes and numbers (from 1), and why the others cannot."""

    rows: tuple[Mapping[str, Any], ...]
    normal: tuple[Normal, ...]
    numbers: tuple[int, ...]
    reasons: tuple[str, ...] = ()  # of the rows left out, in their order

    @property
    def bad(self) -> int:
        """How many rows were left out."""
        return len(self.reasons)


def readable(rows: Sequence[Mapping[str, Any]], where: str, *, skip: bool, mend: str) -> Readable:
    """Read rows as shapes; with `skip` leave out those that are none.

    Raises `DataError` for the first such row otherwise, and says how to leave it out (`mend`); and when none is left.
    """
    kept: list[tuple[Mapping[str, Any], Normal, int]] = []
    reasons: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            kept.append((row, normalise(row, f"{where}, row {number}"), number))
        except DataError as error:
            if not skip:
                raise DataError(f"{error}\nMend the row, or leave such rows out, counted, with {mend}") from None
            reasons.append(str(error))
    if not kept:
        raise DataError(f"{where}: none of {len(rows)} rows can be read; the first: {reasons[0]}")
    found, normal, numbers = zip(*kept, strict=True)
    return Readable(rows=tuple(found), normal=tuple(normal), numbers=tuple(numbers), reasons=tuple(reasons))
