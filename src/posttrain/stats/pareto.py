"""Accuracy against cost: what is worth choosing, and after how many queries a fixed cost has paid."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["break_even", "pareto_front", "undominated"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, accuracy) points that no other beats, cheapest first.

    A point is beaten by one that costs no more and is at least as accurate, and better in one of the two; equal points
    do not beat each other.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def break_even(fixed: float, per_query: float, other_fixed: float, other_per_query: float) -> float:
    """Return after how many queries a method's total cost no longer exceeds another's.

    The least x ≥ 0 with `fixed + x·per_query ≤ other_fixed + x·other_per_query`: 0 when it holds from the start,
    infinity when it never does. (Holding at x, it may cease to hold later only when x is 0.)
    """
    if fixed <= other_fixed:
        return 0.0
    saved = other_per_query - per_query
    return (fixed - other_fixed) / saved if saved > 0 else math.inf


def undominated(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points (more is better in each of k objectives) that no other one dominates, in their order.

    A point is dominated if another is at least as good in every objective and better in one. Equal points are both kept.
    """
    return [
        i
        for i, point in enumerate(points)
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True)) and any(a > b for a, b in zip(other, point, strict=True))
            for other in points
        )
    ]
