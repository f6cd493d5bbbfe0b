"""Confidence intervals for accuracies and means."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtri

__all__ = ["bootstrap", "ratio", "wilson"]


def wilson(successes: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) when n is 0.

    `(p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n)`, `z = Φ⁻¹((1 + level)/2)`. Unlike `p ± z·s` it stays inside
    [0, 1] and does not collapse at 0 or 1. Partial credit (a fractional `successes`) is allowed: the interval is then
    conservative, for no scores in [0, 1] of mean p vary more than 0s and 1s.
    Source: Wilson 1927, JASA 22(158).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact at the ends, where rounding leaves 1e-18
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def ratio(parts: Sequence[tuple[float, float]], *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of Σ right / Σ of over clusters (right_i, of_i), whose parts may hang together.

    Wilson's, with the effective number p(1−p)/s² in place of n: s² = Σ (right_i − p of_i)² / (Σ of)², p the ratio. Where
    every cluster agrees it is the number of clusters; clusters of one part give Wilson's interval itself.
    Source: Kish and Frankel 1974, JRSS B 36 (variance of a ratio, design effect).
    """
    right, of = math.fsum(r for r, _ in parts), math.fsum(n for _, n in parts)
    if not of:
        return 0.0, 1.0
    p = right / of
    variance = math.fsum((r - p * n) ** 2 for r, n in parts) / of**2
    effective = max(round(p * (1 - p) / variance), 1) if variance > 1e-15 else len(parts)
    return wilson(p * effective, effective, level=level)


def bootstrap(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean; whole clusters are drawn when `clusters` names them.

    Several samples of one item are not independent: give the item's id as cluster. The mean is over clusters (each
    item counts once, however many samples it has). Raises `ValueError` without values.
    Source: Efron 1979; cluster bootstrap: Cameron, Gelbach and Miller 2008.
    """
    if not values:
        raise ValueError("no values to draw from")
    means = np.asarray(values, dtype=float) if clusters is None else np.asarray(_cluster_means(values, clusters))
    generator = np.random.default_rng(seed)
    estimates = np.empty(draws)
    chunk = max(1, 4_000_000 // len(means))  # 32 MB of indices at a time
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn = generator.integers(0, len(means), size=(size, len(means)))
        estimates[start : start + size] = means[drawn].mean(axis=1)
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> list[float]:
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    return [math.fsum(group) / len(group) for group in groups.values()]
