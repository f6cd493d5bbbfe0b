"""What curves say against each other: what adaptive spending saves, where one model reaches or overtakes another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..stats.crossing import Track, overtaking, reach, saving
from ..stats.curves import Estimate, majority_curve, ranked_curve, single_curve
from ..stats.pool import Array, Item, Scores
from .curve_rules import AdaptiveConsistency, ComputeOptimal, VerifiedSearch
from .pools import Sampling

__all__ = ["Traced", "find_crossings", "find_savings"]

Bases = Mapping[tuple[str, Sampling], Sequence[Item]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """One strategy replayed on one model's pool."""

    model: str
    strategy: str
    rule: Any
    oracle: bool
    points: Sequence[Estimate]
    scores: Mapping[str, Scores] | None = None
    priced: bool
    parameters: int | None
    tables: Mapping[int, str] = field(default_factory=dict)  # of compute_optimal: budget, by its n, to the table's file


def find_savings(traced: Sequence[Traced], bases: Bases, *, draws: int) -> list[dict[str, Any]]:
    """Compare adaptive and compute-optimal spending with uniform voting on the same pool, n by n.

    Adaptive consistency in samples against voting with all n; compute-optimal allocation and verified search in tokens
    against uniform majority, and best-of-n where they have a verifier. Each says accuracy minus that of uniform at n, and
    its part of what uniform needs for equal accuracy.
    """
    found = []
    for one in traced:
        if not isinstance(one.rule, AdaptiveConsistency | ComputeOptimal | VerifiedSearch):
            continue
        unit = "samples" if isinstance(one.rule, AdaptiveConsistency) else "tokens"
        largest = max(point.n for point in one.points)
        # Every n up to there, to find where uniform spending is as accurate.
        dense = sorted({*range(1, min(largest, 32) + 1), *(point.n for point in one.points)})
        items = bases[one.model, one.rule.sampling]
        uniforms = {"self_consistency": majority_curve(items, dense)}
        if one.scores is not None:
            uniforms[f"best_of_n:verifier={one.rule.scored_by}"] = ranked_curve(items, dense, one.scores)
        for name, uniform in uniforms.items():
            for point in one.points:
                at = dense.index(point.n)
                facts = saving(point.right, getattr(point, unit), _track(uniform, unit), at, draws=draws)
                found.append(
                    {
                        "model": one.model,
                        "strategy": one.strategy,
                        "n": point.n,
                        "unit": unit,
                        "uniform": name,
                        "uniform_accuracy": float(uniform[at].right.mean()),
                        "accuracy": float(point.right.mean()),
                        **_plain(facts),
                    }
                )
    return found


def find_crossings(traced: Sequence[Traced], bases: Bases, unit: str, *, draws: int) -> list[dict[str, Any]]:
    """Compare models: where a curve reaches a better one's single sample, where two models' curves cross at equal cost."""
    methods = [one for one in traced if not one.oracle]
    singles = {(model, sampling): single_curve(items)[0] for (model, sampling), items in bases.items()}
    found = []
    for one in methods:
        if len(one.points) < 2:
            continue
        own = singles[one.model, one.rule.sampling]
        for (model, sampling), single in singles.items():
            if model == one.model or sampling != one.rule.sampling or single.right.mean() <= own.right.mean():
                continue
            facts = reach(_track(one.points, unit), single.right, getattr(single, unit), draws=draws)
            found.append(
                {
                    "kind": "reach",
                    "unit": unit,
                    "model": one.model,
                    "strategy": one.strategy,
                    "n": one.points[-1].n,
                    "reference": model,
                    "size_ratio": _size_ratio(model, one, methods),
                    **_plain(facts),
                }
            )
    for index, one in enumerate(methods):
        for other in methods[index + 1 :]:
            if other.model == one.model or other.strategy != one.strategy or len(one.points) < 2 or len(other.points) < 2:
                continue
            crossed = overtaking(_track(one.points, unit), _track(other.points, unit), draws=draws)
            found.append(
                {
                    "kind": "equal_cost",
                    "unit": unit,
                    "model": one.model,
                    "other": other.model,
                    "strategy": one.strategy,
                    **_plain(crossed),
                }
            )
    return found


def _track(points: Sequence[Estimate], unit: str) -> Track:
    columns: list[tuple[Array, Array]] = [(point.right, getattr(point, unit)) for point in points]
    columns.sort(key=lambda column: float(column[1].mean()))
    right, cost = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    return Track(right=right, cost=cost)


def _size_ratio(model: str, one: Traced, methods: Sequence[Traced]) -> float | None:
    """Return the other model's parameters over this one's."""
    other = next((found.parameters for found in methods if found.model == model), None)
    return other / one.parameters if other and one.parameters else None


def _plain(facts: Any) -> dict[str, Any]:
    """Return a finding as JSON values: None where a number is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in asdict(facts).items()}
