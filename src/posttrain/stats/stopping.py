"""Adaptive consistency: when the samples so far settle the vote, and what stopping early costs and saves on a pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from .pool import Array, Indices, answers_of
from .vote import tally

__all__ = ["Adaptive", "ahead", "beta_confidence", "expected_adaptive", "replay", "settled", "settled_at"]


@lru_cache(maxsize=65536)
def beta_confidence(first: int, second: int) -> float:
    """Return the probability that the leading answer beats the second, given their votes.

    `P(p > ½)` for `p ~ Beta(first + 1, second + 1)`, the posterior under a uniform prior: `I_½(second + 1, first + 1)`, the
    regularised incomplete beta function. v votes without opposition give `1 − 2^−(v+1)`.
    Source: Aggarwal et al. 2023 (arXiv 2305.11860), section 3 (the Beta criterion), integrated in closed form.
    """
    if not first >= second >= 0:
        raise ValueError(f"{first} and {second} votes: give the two largest counts, the larger one first")
    return float(betainc(second + 1.0, first + 1.0, 0.5))  # I_½ reflected: exact where 1 − I would cancel


def ahead(first: int, second: int, threshold: float = 0.95) -> bool:
    """Return whether to stop with these two largest counts of votes; no votes at all stop nothing."""
    return first > 0 and beta_confidence(first, second) >= threshold


def settled(keys: Sequence[str | None], threshold: float) -> bool:
    """Return whether the two most frequent answers are apart by `threshold`; unparsed samples (None) are not votes."""
    first, second, *_ = (*sorted((int(v) for v in tally(keys).values()), reverse=True), 0, 0)
    return ahead(first, second, threshold)


def settled_at(keys: Sequence[str | None], threshold: float) -> int | None:
    """Return after how many samples, taken one by one, the vote was first settled; None if never."""
    return next((count for count in range(1, len(keys) + 1) if settled(keys[:count], threshold)), None)


def replay(
    keys: Sequence[str | None], right: Sequence[float], orders: Indices, *, threshold: float = 0.95, wave: int = 1
) -> tuple[Array, Indices]:
    """Return (score, samples drawn) of adaptive consistency in each order of a question's samples: [orders] each.

    The row of an order is the most that may be drawn. Votes are looked at after each wave, so that what a wave draws past
    the point of certainty is paid. Equal leaders at the end share; with no parsed sample the score is 0.
    """
    if wave < 1:
        raise ValueError(f"wave {wave}: draw at least one sample at a time")
    number, length = orders.shape
    given, worth = answers_of(keys, right)
    counts = np.zeros((number, max(given.shape[1], 2)), dtype=np.int64)  # a second place, even if always empty
    worth = np.pad(worth, (0, counts.shape[1] - len(worth)))
    padded = np.pad(given, ((0, 0), (0, counts.shape[1] - given.shape[1])))
    safe = _table(length, threshold)
    used = np.full(number, length, dtype=np.int64)
    score = np.zeros(number)
    going = np.arange(number)
    for begin in range(0, length, wave):
        end = min(begin + wave, length)
        counts[going] += padded[orders[going, begin:end]].sum(axis=1)
        votes = counts[going]
        top = -np.partition(-votes, 1, axis=1)[:, :2]
        stopped = safe[top[:, 0], top[:, 1]] | (end == length)
        winners = (votes == top[:, :1]) & (votes > 0)
        shared = (winners * worth).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)
        score[going[stopped]], used[going[stopped]] = shared[stopped], end
        going = going[~stopped]
        if not len(going):
            break
    return score, used


@lru_cache(maxsize=256)
def _table(length: int, threshold: float) -> NDArray[np.bool_]:
    """Return `ahead` of every pair of counts up to `length` [first, second]."""
    counts = range(length + 1)
    return np.array([[first >= second and ahead(first, second, threshold) for second in counts] for first in counts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Expectation over sample orders, with standard errors over the orders."""

    accuracy: float
    samples: float
    overshoot: float
    accuracy_se: float
    samples_se: float
    orders: int


def expected_adaptive(
    keys: Sequence[str | None],
    grades: Sequence[float],
    *,
    threshold: float = 0.95,
    n: int = 40,
    wave: int = 1,
    orders: int = 1000,
    seed: int = 0,
) -> Adaptive:
    """Return accuracy and samples used of one question's pool as the mean over `orders` seeded random orders.

    An answer's worth is the mean grade of its samples; no answer is worth 0. `overshoot` is what waves draw beyond what
    one by one would.
    """
    generator = np.random.default_rng(seed)
    drawn = np.argsort(generator.random((orders, len(keys))), axis=1)[:, :n].astype(np.int64)
    found, used = replay(keys, grades, drawn, threshold=threshold, wave=wave)
    over = used - replay(keys, grades, drawn, threshold=threshold)[1]
    root = math.sqrt(orders)
    return Adaptive(
        accuracy=float(found.mean()),
        samples=float(used.mean()),
        overshoot=float(over.mean()),
        accuracy_se=float(found.std(ddof=1)) / root if orders > 1 else math.nan,
        samples_se=float(used.std(ddof=1)) / root if orders > 1 else math.nan,
        orders=orders,
    )
