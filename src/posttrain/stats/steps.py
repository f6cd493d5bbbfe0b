"""From the scores of reasoning steps to the score of a whole text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["Aggregation", "aggregate"]

Aggregation = Literal["last", "min", "product", "mean"]


def aggregate(steps: Sequence[float], how: Aggregation) -> float:
    """Return one score of a text from those of its K steps; 0 for a text without steps.

    `last`: s_K, what the verifier thinks with everything before it (Snell et al. 2024, arXiv 2408.03314, section 5.1);
    `min`: min_k s_k and `product`: Π_k s_k (Lightman et al. 2023, arXiv 2305.20050, appendix F: each step right, as if
    independent), which both fall with the number of steps; `mean`: (1/K) Σ_k s_k, which forgives one wrong step. They choose
    different texts: the choice belongs to the result.
    """
    if not steps:
        return 0.0
    if how == "last":
        return steps[-1]
    if how == "min":
        return min(steps)
    if how == "product":
        return math.prod(steps)
    if how == "mean":
        return math.fsum(steps) / len(steps)
    raise ValueError(f"unknown aggregation '{how}'")
