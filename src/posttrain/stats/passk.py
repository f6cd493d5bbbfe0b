"""pass@k: the chance that at least one of k samples is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .intervals import bootstrap

__all__ = ["mean_pass_at_k", "pass_at_k"]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate from n samples: `1 − C(n − correct, k)/C(n, k)`.

    The mean over all k-subsets of the samples; the plug-in `1 − (1 − correct/n)^k` is biased low. Raises `ValueError`
    for fewer samples than k. Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} right of {n} samples")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}" if k > n else f"pass@{k}: k is at least 1")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mean_pass_at_k(
    counts: Sequence[tuple[int, int]], k: int, *, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the mean pass@k over items, each given as (samples, right ones), and its bootstrap interval over items.

    An item counts once however many samples it has, and items are drawn whole: samples of one item are not independent.
    """
    if not counts:
        raise ValueError("no items")
    values = [pass_at_k(n, correct, k) for n, correct in counts]
    return math.fsum(values) / len(values), bootstrap(values, level=level, seed=seed)
