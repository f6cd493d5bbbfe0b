"""How much an accuracy moves between variants of a prompt that should not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "macro", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Accuracy over variants on the same examples.

    `noise` is the spread to be expected if no variant mattered: the largest of several noisy accuracies is above the
    smallest even then. `p` is the chance of at least the observed spread under that hypothesis.
    """

    variants: int
    n: int
    mean: float
    best: float
    worst: float
    worst_ci95: tuple[float, float]
    spread: float  # best - worst
    spread_ci95: tuple[float, float]
    noise: float
    p: float


def spread(scores: Sequence[Sequence[float]], *, draws: int = 4000, seed: int = 0) -> Spread:
    """Return the spread of the accuracies of variants, given their scores [variants][examples] on the same examples.

    Intervals: percentile bootstrap over examples, all variants of an example together, minimum and maximum taken anew in
    each draw. `p` and `noise`: permutation of each example's scores among the variants, `p = (1 + #{s* ≥ s}) / (1 + draws)`.
    For two variants this is McNemar's test by simulation. Raises `ValueError` without examples or for unequal counts.
    """
    if not scores or not scores[0] or len({len(row) for row in scores}) != 1:
        raise ValueError("spread needs one or more variants with scores of the same examples")
    table_VN = np.asarray(scores, dtype=float)
    variants, n = table_VN.shape
    accuracy_V = table_VN.mean(axis=1)
    observed = float(accuracy_V.max() - accuracy_V.min())
    generator = np.random.default_rng(seed)
    lows, spreads, nulls = np.empty(draws), np.empty(draws), np.empty(draws)
    for draw in range(draws):
        drawn_V = table_VN[:, generator.integers(0, n, n)].mean(axis=1)
        lows[draw], spreads[draw] = drawn_V.min(), drawn_V.max() - drawn_V.min()
        shuffled_V = generator.permuted(table_VN, axis=0).mean(axis=1)
        nulls[draw] = shuffled_V.max() - shuffled_V.min()
    reached = int((nulls >= observed - 1e-12).sum())
    return Spread(
        variants=variants,
        n=n,
        mean=float(accuracy_V.mean()),
        best=float(accuracy_V.max()),
        worst=float(accuracy_V.min()),
        worst_ci95=_central(lows),
        spread=observed,
        spread_ci95=_central(spreads),
        noise=float(nulls.mean()),
        p=(1 + reached) / (1 + draws),
    )


def macro(groups: Sequence[Sequence[float]], *, draws: int = 4000, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Return the mean over groups (tasks) of their mean scores, with a 95% interval: bootstrap inside each group.

    Every task counts the same, however many examples it has. Raises `ValueError` for an empty group.
    """
    if not groups or any(not group for group in groups):
        raise ValueError("macro needs one or more groups, none of them empty")
    generator = np.random.default_rng(seed)
    means, drawn_D = [], np.zeros(draws)
    for group in groups:
        values_N = np.asarray(group, dtype=float)
        means.append(float(values_N.mean()))
        for draw in range(draws):
            drawn_D[draw] += values_N[generator.integers(0, len(values_N), len(values_N))].mean() / len(groups)
    return sum(means) / len(means), _central(drawn_D)


def _central(values_D: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values_D, [0.025, 0.975])
    return float(low), float(high)
