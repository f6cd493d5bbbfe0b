"""Which groups of annotators a judgement stands for, and which reply each preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import DataError, did_you_mean

__all__ = ["groups_of"]

_SIDES = {"chosen": 1.0, "rejected": 0.0, "tie": None}


def groups_of(row: Mapping[str, Any], column: str, where: str, *, pair: bool) -> tuple[tuple[str, float], ...]:
    """Return (group, 1 if it preferred as the row says, 0 if the other way), group by group; those that tied are left out.

    The column holds the name of the group whose judgement the row is, a list of such names, or, of a pair, an object that
    says what each group preferred: `{"nurses": "chosen", "patients": "rejected"}`. A row may have none (null).
    """
    found = row.get(column)
    if column not in row:
        raise DataError(f"{where}: no column '{column}'{did_you_mean(column, row)}")
    if found is None:
        return ()
    if isinstance(found, str):
        return ((found, 1.0),)
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return tuple((name, 1.0) for name in dict.fromkeys(found))
    if isinstance(found, Mapping) and pair and all(side in _SIDES for side in found.values()):
        return tuple((str(name), value) for name, side in found.items() if (value := _SIDES[side]) is not None)
    raise DataError(
        f"{where}, '{column}': must be a group's name, a list of names or, of a pair, an object from group to chosen, "
        f"rejected or tie, not {found!r:.100}"
    )
