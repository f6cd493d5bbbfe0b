"""What a rule would score with k samples, as an expectation over the k-subsets of a pool (its order is forgotten).

Each function returns the value for one question; means over questions and their intervals are `stats.resample`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .pool import Array, Indices, Item, Scores, answers_of, orders_of
from .stopping import replay
from .vote import expected_majority

__all__ = [
    "Estimate",
    "adaptive_curve",
    "best_of_k",
    "best_of_prefixes",
    "costs_at",
    "majority_curve",
    "ranked_curve",
    "single_curve",
    "verified_curve",
    "vote_prefixes",
    "weighted_curve",
]

_TIE = 1e-9  # sums of the same weights in another order differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Per question [questions]: expected score, samples, tokens (prompt once, verifier included), FLOPs.

    `variance` is that of the score's Monte-Carlo mean, 0 where the expectation is exact.
    """

    n: int
    right: Array
    samples: Array
    tokens: Array
    flops: Array
    variance: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def monte_carlo_error(self) -> float:
        """The standard error that drawing subsets adds to the mean over questions."""
        return float(math.sqrt(self.variance.sum()) / len(self.right)) if len(self.variance) else 0.0


def best_of_k(keys: Sequence[str | None], right: Sequence[float], scores: Sequence[float | None], k: int) -> float:
    """Return the exact expectation, over all k-subsets of n samples, of the score of the sample that ranks first.

    With the samples in groups of equal rank, best first, b better ones than group g and m in it, the best of a subset is
    in g with probability `(C(n − b, k) − C(n − b − m, k)) / C(n, k)`; equals share the choice, so g is worth its mean.
    A sample without an answer ranks below all others, one without a score (None) below all scored ones. With the graded
    scores themselves as ranks it is pass@k (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    n = len(keys)
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} needs between 1 and {n} samples")
    groups: dict[float, list[float]] = {}
    for rank, value in zip(_ranks(keys, scores), right, strict=True):
        groups.setdefault(rank, []).append(value)
    total, better = 0.0, 0
    for rank in sorted(groups, reverse=True):
        here = len(groups[rank])
        first = math.comb(n - better, k) - math.comb(n - better - here, k)
        total += first / math.comb(n, k) * math.fsum(groups[rank]) / here
        better += here
    return total


def best_of_prefixes(item: Item, scores: Sequence[float | None], orders: Indices, sizes: Sequence[int]) -> Array:
    """Return the score of the first-ranked among the first k samples of every order, equals shared: [orders, sizes]."""
    ranks = np.array(_ranks(item.keys, scores))[orders]
    right = np.asarray(item.right, dtype=float)[orders]
    found = []
    for k in sizes:
        first = ranks[:, :k] == ranks[:, :k].max(axis=1, keepdims=True)
        found.append((first * right[:, :k]).sum(axis=1) / first.sum(axis=1))
    return np.stack(found, axis=1)


def vote_prefixes(item: Item, weights: Sequence[float] | None, orders: Indices, sizes: Sequence[int]) -> Array:
    """Return the score of the vote among the first k samples of every order: [orders, sizes].

    The largest sum of weights wins (1 each if None), then the most votes, then equals share; 0 when nothing parsed.
    """
    given, worth = answers_of(item.keys, item.right)
    if not given.shape[1]:
        return np.zeros((len(orders), len(sizes)))
    weight = np.ones(item.n) if weights is None else np.asarray(weights, dtype=float)
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError(f"question '{item.id}': votes need weights that are finite and not negative")
    sums = np.cumsum((given * weight[:, None])[orders], axis=1)
    counts = np.cumsum(given[orders], axis=1, dtype=np.int64) if weights is not None else sums
    found = []
    for k in sizes:
        votes, total = counts[:, k - 1], sums[:, k - 1]
        highest = total.max(axis=1, keepdims=True)
        top = (votes > 0) & (total >= highest - _TIE * np.maximum(highest, 1e-300))
        most = np.where(top, votes, 0).max(axis=1, keepdims=True)
        winners = top & (votes == most)
        found.append((winners * worth).sum(axis=1) / np.maximum(winners.sum(axis=1), 1))
    return np.stack(found, axis=1)


def costs_at(items: Sequence[Item], k: int, scores: Mapping[str, Scores] | None = None) -> tuple[Array, Array]:
    """Return expected tokens and FLOPs of k samples per question: the prompt once, k times the mean sample and scoring."""
    tokens = np.array([item.prompt_tokens + k * float(np.mean(item.tokens)) for item in items])
    flops = np.array([item.prompt_flops + k * float(np.mean(item.flops)) for item in items])
    if scores is not None:
        tokens += [k * float(np.mean(scores[item.id].tokens)) for item in items]
        flops += [k * float(np.mean(scores[item.id].flops)) for item in items]
    return tokens, flops


def single_curve(items: Sequence[Item]) -> list[Estimate]:
    """Return what one sample scores in expectation: a curve of one point."""
    return [_exact(items, 1, [float(np.mean(item.right)) for item in items])]


def majority_curve(items: Sequence[Item], sizes: Sequence[int]) -> list[Estimate]:
    """Return majority@k for each k, exact (`vote.expected_majority`: ties shared)."""
    return [_exact(items, k, [expected_majority(item.keys, item.right, k) for item in items]) for k in sizes]


def ranked_curve(items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None = None) -> list[Estimate]:
    """Return best-of-k by a verifier's scores for each k, exact; without scores by the grades: pass@k, an oracle."""
    found = []
    for k in sizes:
        values = [best_of_k(i.keys, i.right, i.right if scores is None else scores[i.id].values, k) for i in items]
        found.append(_exact(items, k, values, scores))
    return found


def weighted_curve(
    items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores], *, draws: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Return the vote weighted by a verifier's scores for each k: over all orders when few, else over `draws` of them."""
    drawn = []
    for item in items:
        orders = orders_of(item, max(sizes), draws, seed=seed)
        weights = [0.0 if value is None else value for value in scores[item.id].values]
        drawn.append(_moments(vote_prefixes(item, weights, orders, sizes), exact=_all(item, max(sizes), draws)))
    means, variances = (np.stack(part) for part in zip(*drawn, strict=True))
    found = []
    for at, k in enumerate(sizes):
        tokens, flops = costs_at(items, k, scores)
        values, spread = means[:, at], variances[:, at]
        samples = np.full(len(items), float(k))
        found.append(Estimate(n=k, right=values, samples=samples, tokens=tokens, flops=flops, variance=spread))
    return found


def adaptive_curve(
    items: Sequence[Item], sizes: Sequence[int], *, threshold: float, wave: int, draws: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Return adaptive consistency with at most k samples, for each k: over all orders when few, else over `draws`."""
    columns: dict[int, list[tuple[float, float, float, float, float]]] = {k: [] for k in sizes}
    for item in items:
        orders = orders_of(item, max(sizes), draws, seed=seed)
        exact = _all(item, max(sizes), draws)
        tokens = np.cumsum(np.asarray(item.tokens, dtype=float)[orders], axis=1)
        flops = np.cumsum(np.asarray(item.flops, dtype=float)[orders], axis=1)
        for k in sizes:
            right, used = replay(item.keys, item.right, orders[:, :k], threshold=threshold, wave=wave)
            mean, variance = _moments(right[:, None], exact=exact)
            at = (np.arange(len(orders)), used - 1)
            calls = float(np.ceil(used / wave).mean())  # each wave is a call, which reads the prompt
            paid = (
                calls * item.prompt_tokens + float(tokens[at].mean()),
                calls * item.prompt_flops + float(flops[at].mean()),
            )
            columns[k].append((float(mean[0]), float(used.mean()), *paid, float(variance[0])))
    return _estimates(columns)


def verified_curve(
    items: Sequence[Item],
    sizes: Sequence[int],
    scores: Mapping[str, Scores],
    *,
    accept: float,
    wave: int,
    draws: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Return verified search with at most k samples, for each k: over all orders when few, else over `draws`.

    The first readable sample with a score of at least `accept` ends the search, its wave drawn and scored to the end; where
    none has it, the best scored readable one of the k is given.
    """
    columns: dict[int, list[tuple[float, float, float, float, float]]] = {k: [] for k in sizes}
    for item in items:
        opinion = scores[item.id]
        orders = orders_of(item, max(sizes), draws, seed=seed)
        exact = _all(item, max(sizes), draws)
        good = [key is not None and v is not None and v >= accept for key, v in zip(item.keys, opinion.values, strict=True)]
        hits = np.array(good)[orders]
        first = np.where(hits.any(axis=1), hits.argmax(axis=1), orders.shape[1])
        best = best_of_prefixes(item, opinion.values, orders, sizes)
        given = np.asarray(item.right, dtype=float)[orders]
        tokens = np.cumsum((np.asarray(item.tokens) + np.asarray(opinion.tokens))[orders], axis=1)
        flops = np.cumsum((np.asarray(item.flops) + np.asarray(opinion.flops))[orders], axis=1)
        rows = np.arange(len(orders))
        for at, k in enumerate(sizes):
            found = first < k
            right = np.where(found, given[rows, np.minimum(first, k - 1)], best[:, at])
            used = np.where(found, np.minimum((first // wave + 1) * wave, k), k)
            mean, variance = _moments(right[:, None], exact=exact)
            calls = float(np.ceil(used / wave).mean())  # each wave is a call, which reads the prompt
            paid = (
                calls * item.prompt_tokens + float(tokens[rows, used - 1].mean()),
                calls * item.prompt_flops + float(flops[rows, used - 1].mean()),
            )
            columns[k].append((float(mean[0]), float(used.mean()), *paid, float(variance[0])))
    return _estimates(columns)


def _estimates(columns: Mapping[int, Sequence[tuple[float, float, float, float, float]]]) -> list[Estimate]:
    """Return for each k the curve's point from its questions' (score, samples, tokens, FLOPs, variance)."""
    found = []
    for k, rows in columns.items():
        right, samples, tokens, flops, variance = (np.array(column) for column in zip(*rows, strict=True))
        found.append(Estimate(n=k, right=right, samples=samples, tokens=tokens, flops=flops, variance=variance))
    return found


def _exact(items: Sequence[Item], k: int, values: Sequence[float], scores: Mapping[str, Scores] | None = None) -> Estimate:
    tokens, flops = costs_at(items, k, scores)
    samples = np.full(len(items), float(k))
    return Estimate(n=k, right=np.array(values), samples=samples, tokens=tokens, flops=flops, variance=np.zeros(len(items)))


def _moments(values: Array, *, exact: bool) -> tuple[Array, Array]:
    """Return the means over orders and the variances of these means as estimates (0 when all orders are there)."""
    spread = np.zeros(values.shape[1]) if exact else values.var(axis=0, ddof=1) / len(values)
    return values.mean(axis=0), spread


def _all(item: Item, length: int, draws: int) -> bool:
    return math.perm(item.n, length) <= draws


def _ranks(keys: Sequence[str | None], scores: Sequence[float | None]) -> list[float]:
    """Return the order of choice as numbers: dense ranks of the scores, below them the unscored, below all the unparsed."""
    known = sorted({score for key, score in zip(keys, scores, strict=True) if key is not None and score is not None})
    place = {score: float(rank) for rank, score in enumerate(known)}
    return [
        -2.0 if key is None else -1.0 if score is None else place[score] for key, score in zip(keys, scores, strict=True)
    ]
