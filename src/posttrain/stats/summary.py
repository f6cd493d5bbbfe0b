"""What a set of graded rows says: accuracy with its interval, beside it what went wrong, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..core.errors import DataError
from ..core.types import Cost, Usage
from .intervals import ratio, wilson

__all__ = ["Graded", "Paid", "Summary", "summarise"]


class Graded(Protocol):
    """What a summary reads of a row."""

    @property
    def example(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def unparsed(self) -> bool: ...
    @property
    def truncated(self) -> float: ...
    @property
    def error(self) -> str | None: ...
    @property
    def cost(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def trace(self) -> Mapping[str, Any]: ...
    def cold(self) -> Cost: ...


class Paid(Protocol):
    """What a summary reads of a timing."""

    @property
    def cached(self) -> int: ...
    @property
    def replayed(self) -> int: ...
    @property
    def flops_spent(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One evaluation in numbers. Rates are shares of the n examples; costs are totals."""

    n: int
    accuracy: float  # rows without a score count as wrong
    ci95: tuple[float, float]  # Wilson
    unparsed_rate: float
    truncated_rate: float  # mean share of candidates cut by the token limit
    error_rate: float
    budget_rate: float  # the budget ended the method, or kept it from drawing all it asked for
    usage: Mapping[str, Mapping[str, float]]  # cold counts by role
    cost: Cost
    measures: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # what the task measures beside: name -> value, ci95

    @property
    def flops_known(self) -> bool:
        """Whether the sizes of every model that did some work were known: else its FLOPs are not 0 but unknown."""
        worked = ("prompt", "generated", "scored")
        return all(role["flops"] > 0 or not any(role[name] for name in worked) for role in self.usage.values())

    @property
    def per_query(self) -> dict[str, float | None]:
        """Means per example, cold but for the seconds."""
        n = max(self.n, 1)
        usage = self.cost.usage
        return {
            "calls": usage.calls / n,
            "tokens": usage.tokens / n,
            "generated": usage.generated / n,
            "flops": self.cost.flops / n if self.flops_known else None,
            "seconds": self.cost.seconds / n,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values in a fixed order of keys; FLOPs that are not known are null."""
        usage = self.cost.usage
        flops = self.cost.flops if self.flops_known else None
        return {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "n": self.n,
            "unparsed_rate": self.unparsed_rate,
            "truncated_rate": self.truncated_rate,
            "error_rate": self.error_rate,
            "budget_rate": self.budget_rate,
            "usage": {role: dict(counts) for role, counts in sorted(self.usage.items())},
            "cost": {"calls": usage.calls, "tokens": usage.tokens, "flops": flops},
            "per_query": self.per_query,
            "spent": {
                "tokens": usage.tokens_spent,
                "cached": usage.cached,
                "replayed": usage.replayed,
                "flops": self.cost.flops_spent if self.flops_known else None,
                "seconds": self.cost.seconds,
            },
            "flops": flops,
            "seconds": self.cost.seconds,
            "measures": {name: dict(found) for name, found in self.measures.items()},
        }


def summarise(rows: Sequence[Graded], timings: Sequence[Paid] = (), *, seconds: float = 0.0) -> Summary:
    """Summarise rows; `timings` say what the run paid (without them, as much as the work costs cold).

    `seconds` is the wall-clock time of the whole evaluation: examples run side by side, so theirs cannot be summed.
    Raises `DataError` for no rows or a score outside [0, 1].
    """
    if not rows:
        raise DataError("nothing to summarise: the evaluation has no rows")
    scores = []
    for row in rows:
        score = 0.0 if row.score is None else row.score
        if not 0.0 <= score <= 1.0:
            raise DataError(f"example '{row.example}' has score {score}: scores lie between 0 and 1")
        scores.append(score)
    right = math.fsum(scores)
    return Summary(
        n=len(rows),
        accuracy=right / len(rows),
        ci95=wilson(right, len(rows)),
        unparsed_rate=sum(row.unparsed for row in rows) / len(rows),
        truncated_rate=math.fsum(row.truncated for row in rows) / len(rows),
        error_rate=sum(row.error is not None for row in rows) / len(rows),
        budget_rate=sum(row.trace.get("budget") == "spent" for row in rows) / len(rows),
        usage=_by_role(rows),
        cost=_total(rows, timings, seconds),
        measures=_measures(rows),
    )


def _measures(rows: Sequence[Graded]) -> dict[str, dict[str, Any]]:
    """Return Σ right / Σ of per measure, with an interval that takes the parts of one example as a cluster."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, (right, of) in row.trace.get("measures", {}).items():
            parts.setdefault(name, []).append((right, of))
    return {
        name: {
            "value": math.fsum(right for right, _ in found) / (of := math.fsum(n for _, n in found)),
            "ci95": list(ratio(found)),
            "of": int(of),
        }
        for name, found in parts.items()
    }


def _by_role(rows: Sequence[Graded]) -> dict[str, dict[str, float]]:
    usage: dict[str, dict[str, float]] = {}
    for row in rows:
        for role, counts in row.cost.items():
            total = usage.setdefault(role, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                total[name] += count
    return usage


def _total(rows: Sequence[Graded], timings: Sequence[Paid], seconds: float) -> Cost:
    cost = sum((row.cold() for row in rows), Cost())
    if not timings:
        return replace(cost, flops_spent=cost.flops, seconds=seconds)
    saved = Usage(cached=sum(t.cached for t in timings), replayed=sum(t.replayed for t in timings))
    return replace(
        cost,
        usage=cost.usage + saved,
        flops_spent=math.fsum(t.flops_spent for t in timings),
        seconds=seconds,
    )
