"""Which rungs may be compared: those of one task, on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError, DataError, did_you_mean
from ..ledger.row import Row
from ..stats.paired import Paired, compare
from .rung import APART, Rung

__all__ = ["by_task", "difference", "paired_rows"]


def paired_rows(rung: Sequence[Row], reference: Sequence[Row]) -> Paired:
    """Compare two lists of rows of the same examples; a row without a score counts as wrong."""
    ours = {row.example: row.score or 0.0 for row in rung}
    theirs = {row.example: row.score or 0.0 for row in reference}
    try:
        return compare([ours[example] for example in theirs], list(theirs.values()))
    except ValueError as error:
        raise DataError(f"cannot compare the two evaluations: {error}") from None


def difference(rung: Rung, reference: Rung) -> dict[str, Any]:
    """Return the paired difference to a reference as the report keeps it."""
    pair = paired_rows(rung.rows, reference.rows)
    return {
        "against": reference.name,
        "difference": pair.difference,
        "ci95": list(pair.ci95),
        "gained": pair.gained,
        "lost": pair.lost,
        "p": pair.p,
    }


def by_task(rungs: Sequence[Rung]) -> list[list[Rung]]:
    """Return the rungs of each task, in the order of the tasks' first rungs; raises when some cannot be compared."""
    by_name: dict[str, Rung] = {}
    tasks: dict[str, list[Rung]] = {}
    for rung in rungs:
        if rung.name in by_name:
            raise ConfigError(f"two rungs are called '{rung.name}'")
        if not rung.rows:
            raise DataError(f"rung '{rung.name}' has no rows: its evaluation did not finish")
        if len({row.example for row in rung.rows}) != len(rung.rows):
            raise DataError(f"rung '{rung.name}' has two rows for one example")
        by_name[rung.name] = rung
        tasks.setdefault(rung.asked, []).append(rung)
    for rung in rungs:
        if rung.against is not None:
            _check_reference(rung, by_name)
    for group in tasks.values():
        apart = [[rung for rung in group if rung.lever == lever] for lever in APART]
        for compared in ([rung for rung in group if rung.lever not in APART], *apart):
            _check_examples(compared)
    return list(tasks.values())


def _check_examples(rungs: Sequence[Rung]) -> None:
    for rung in rungs[1:]:
        first, asked = rungs[0], {row.example for row in rungs[0].rows}
        if odd := asked ^ {row.example for row in rung.rows}:
            raise DataError(
                f"rungs '{first.name}' ({len(asked)} examples) and '{rung.name}' ({len(rung.rows)}) answer different "
                f"examples, for instance '{min(odd)}': a paired comparison needs the same ones"
            )


def _check_reference(rung: Rung, by_name: dict[str, Rung]) -> None:
    if rung.against not in by_name:
        raise ConfigError(f"rung '{rung.name}' is compared with '{rung.against}'{did_you_mean(str(rung.against), by_name)}")
    reference = by_name[rung.against]
    if reference.oracle:
        raise ConfigError(f"rung '{rung.name}' is compared with the oracle '{rung.against}': an oracle is no method")
    if reference.asked != rung.asked:
        raise ConfigError(
            f"rung '{rung.name}' is compared with '{rung.against}', but they are of different tasks: "
            f"{rung.asked}, {reference.asked}"
        )
