"""What checks of training data report: findings, each with a level, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Level", "Report", "percentiles"]

Level = Literal["error", "warning"]
_SHOWN = 5  # rows named in a finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found: how bad, by which check, in how many rows, and the first of them (numbered from 1)."""

    level: Level
    check: str
    message: str
    count: int
    rows: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """Everything found; the figures are plain JSON values."""

    rows: int
    shapes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    lengths: dict[str, Any] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    labels: dict[str, Any] | None = None
    diversity: dict[str, float | None] = field(default_factory=dict)
    contamination: list[dict[str, Any]] = field(default_factory=list)

    def count(self, level: Level) -> int:
        """How many findings there are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def add(self, level: Level, check: str, message: str, rows: Sequence[int], count: int | None = None) -> None:
        """Add a finding on rows numbered from 0, if there are any."""
        if rows:
            named = tuple(row + 1 for row in rows[:_SHOWN])
            self.findings.append(Finding(level=level, check=check, message=message, count=count or len(rows), rows=named))


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Return percentiles by the nearest rank: each is a length that occurs."""
    if not values:
        return {}
    ranked = sorted(values)
    found = {f"p{p}": ranked[max(0, -(-p * len(ranked) // 100) - 1)] for p in (5, 50, 95, 99)}
    return found | {"max": ranked[-1]}
