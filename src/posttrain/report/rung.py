"""A rung of the ladder: one evaluated method, with what it had to pay once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..core.errors import DataError
from ..core.types import Cost
from ..ledger.row import Row, Timing

__all__ = ["APART", "LEVERS", "Lever", "Rung", "oracle_rows"]

Lever = Literal["prompting", "test-time", "fine-tuning", "preference", "combined", "oracle", "retention", "diversity"]
LEVERS: dict[str, str] = {
    "prompting": "Prompting",
    "test-time": "Test-time scaling",
    "fine-tuning": "Supervised fine-tuning",
    "preference": "Preference optimisation",
    "combined": "Levers combined",
    "oracle": "Oracle (pass@N)",
}
APART = ("retention", "diversity")  # rungs of no ladder: what training kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One evaluation of the report.

    `fixed` is what had to be paid once (training, search, sampling of labels), `seconds` the wall-clock time of the
    evaluation, `against` the name of the rung it is compared with (default: the first of its task), `texts` the replies to
    each example where the report looks at them, `parameters` the size of the model that answered, where it is known.
    """

    name: str
    label: str
    lever: Lever
    rows: Sequence[Row]
    timings: Sequence[Timing] = ()
    fixed: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    prompt: str = ""
    strategy: str = ""
    model: str = ""
    parameters: int | None = None
    oracle: bool = False
    against: str | None = None
    note: str = ""
    texts: Sequence[Sequence[str]] = ()
    task: str = ""  # as the recipe calls it; default: the task's own name

    @property
    def asked(self) -> str:
        """The task's name in the report."""
        return self.task or self.rows[0].task


def oracle_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows as a perfect verifier would have chosen among the same candidates: pass@N, no method's accuracy."""
    chosen = []
    for row in rows:
        if not row.candidates and row.trace.get("budget") == "spent":  # nothing was drawn: a perfect verifier has nothing
            chosen.append(row)
            continue
        if not row.candidates:
            raise DataError(f"example '{row.example}' of '{row.stage}' kept no candidates: there is nothing to choose from")
        best = max(row.candidates, key=lambda candidate: candidate["score"] or 0.0)
        unparsed = all(candidate["answer"] is None for candidate in row.candidates)
        chosen.append(replace(row, score=float(best["score"] or 0.0), answer=best["answer"], unparsed=unparsed))
    return tuple(chosen)
