"""Voting among sampled answers by equivalence key. An unparsed answer (key None) does not vote."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

__all__ = ["answer_entropy", "expected_majority", "majority", "subset_mean", "tally", "weighted"]


def tally(keys: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Return the summed weight of each key (1 per vote by default), in the order of their first votes."""
    sums: dict[str, float] = {}
    for key, weight in zip(keys, [1.0] * len(keys) if weights is None else weights, strict=True):
        if key is not None:
            sums[key] = sums.get(key, 0.0) + weight
    return sums


def majority(keys: Sequence[str | None], scores: Sequence[float] | None = None) -> str | None:
    """Return the key with the most votes, None when nothing parsed.

    A tie goes to the highest summed score, then to the answer that was first by sample index.
    Source: Wang et al. 2022 (arXiv 2203.11171), unweighted.
    """
    votes = tally(keys)
    summed = tally(keys, scores)
    return max(votes, key=lambda key: (votes[key], summed[key]), default=None)  # max keeps the first of equals


def weighted(keys: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """Return the key with the largest *sum* of weights (a mean would forget the counts), None when nothing parsed.

    A tie goes to the answer with more votes, then to the first by sample index. Raises `ValueError` for a weight that
    is negative or not finite: with negative weights another vote would count against an answer; map raw rewards through
    a sigmoid first. Source: Li et al. 2022 (arXiv 2206.02336), equation 2.
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight {weight}: votes need weights that are finite and not negative")
    votes = tally(keys)
    summed = tally(keys, weights)
    return max(summed, key=lambda key: (summed[key], votes[key]), default=None)


def answer_entropy(keys: Sequence[str | None]) -> float:
    """Return the entropy `−Σ_a p_a log p_a` of the parsed answers' shares, in nats; 0 when at most one answer is there.

    0: all agree; log n: n samples gave n answers. A label-free measure of difficulty.
    """
    counts = [count for count in tally(keys).values() if count > 0]
    total = math.fsum(counts)
    return -math.fsum(count / total * math.log(count / total) for count in counts) + 0.0


def expected_majority(keys: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """Return the exact expectation, over all k-subsets of a pool of n samples, of the majority answer's score.

    An answer's score is the mean over its samples; tied answers share the win; a subset without any parsed answer
    scores 0. Counted, not drawn: for answer a with v votes the other answers' subsets with at most v votes each are
    coefficients of `∏_b (Σ_{j<v} C(c_b, j)·x^j + C(c_b, v)·x^v·y) · (1 + x)^u`, where u samples are unparsed, x counts
    samples and y ties; the coefficient of `x^(k−v)·y^t` weighs 1/(t + 1).
    """
    n = len(keys)
    if not 1 <= k <= n:
        raise ValueError(f"majority@{k} needs between 1 and {n} samples")
    counts = Counter(key for key in keys if key is not None)
    worth = tally(keys, scores)
    total = Fraction(0)
    for key, count in counts.items():
        if worth[key] == 0.0:
            continue
        others = sorted((c for other, c in counts.items() if other != key), reverse=True)
        wins = sum(
            (math.comb(count, v) * _shared(others, n - sum(counts.values()), v, k - v) for v in range(1, min(count, k) + 1)),
            Fraction(0),
        )
        total += wins * Fraction(worth[key]) / count
    return float(total / math.comb(n, k))


def _shared(others: Sequence[int], unparsed: int, votes: int, rest: int) -> Fraction:
    """Count the ways to take `rest` more samples so that no other answer has above `votes`, each over its ties + 1."""
    ways: dict[tuple[int, int], int] = {(0, 0): 1}  # (samples taken, ties) → number of ways
    for count in others:
        grown: Counter[tuple[int, int]] = Counter()
        choices = [(j, math.comb(count, j)) for j in range(min(count, votes, rest) + 1)]
        for (taken, ties), number in ways.items():
            for j, combinations in choices:
                if taken + j > rest:
                    break
                grown[taken + j, ties + (j == votes)] += number * combinations
        ways = grown
    return sum(
        (Fraction(number * math.comb(unparsed, rest - taken), ties + 1) for (taken, ties), number in ways.items()),
        Fraction(0),
    )


def subset_mean(
    n: int, k: int, value: Callable[[tuple[int, ...]], float], *, exact_up_to: int = 5000, draws: int = 2000, seed: int = 0
) -> float:
    """Return the mean of `value` over the k-subsets of n samples: all of them when few, else a seeded draw.

    For rules that have no closed form (weighted votes, best-of-N by a verifier). A subset is an ascending tuple of indices.
    """
    if not 1 <= k <= n:
        raise ValueError(f"subsets of {k} need between 1 and {n} samples")
    if math.comb(n, k) <= exact_up_to:
        return math.fsum(value(subset) for subset in itertools.combinations(range(n), k)) / math.comb(n, k)
    generator = np.random.default_rng(seed)
    drawn = (tuple(sorted(generator.choice(n, size=k, replace=False).tolist())) for _ in range(draws))
    return math.fsum(value(subset) for subset in drawn) / draws
