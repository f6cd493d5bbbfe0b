"""Adaptive consistency: when the samples so far settle the vote, and what stopping early costs and saves on a pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import betainc

from .vote import majority, tally

__all__ = ["Adaptive", "Replay", "beta_confidence", "expected_adaptive", "replay_adaptive", "settled", "settled_at"]


@lru_cache(maxsize=65536)
def beta_confidence(first: int, second: int) -> float:
    """Return the probability that the leading answer beats the second, given their votes.

    `P(p > ½)` for `p ~ Beta(first + 1, second + 1)`, the posterior under a uniform prior: `I_½(second + 1, first + 1)`, the
    regularised incomplete beta function. v votes without opposition give `1 − 2^−(v+1)`.
    Source: Aggarwal et al. 2023 (arXiv 2305.11860), section 3 (the Beta criterion), integrated in closed form.
    """
    return float(betainc(second + 1, first + 1, 0.5))


def settled(keys: Sequence[str | None], threshold: float) -> bool:
    """Return whether the two most frequent answers are apart by `threshold`; unparsed samples (None) are not votes."""
    first, second, *_ = (*sorted((int(v) for v in tally(keys).values()), reverse=True), 0, 0)
    return first > 0 and beta_confidence(first, second) >= threshold


def settled_at(keys: Sequence[str | None], threshold: float) -> int | None:
    """Return after how many samples, taken one by one, the vote was first settled; None if never."""
    return next((count for count in range(1, len(keys) + 1) if settled(keys[:count], threshold)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One replay: the answer's key, the samples used, and how many more these are than one by one would have been."""

    key: str | None
    used: int
    overshoot: int


def replay_adaptive(
    keys: Sequence[str | None],
    order: Sequence[int],
    *,
    threshold: float = 0.95,
    n: int = 40,
    wave: int = 1,
    scores: Sequence[float] | None = None,
) -> Replay:
    """Return what adaptive consistency does when a pool's samples come in this order.

    What the strategy does, without an engine. Samples are drawn `wave` at a time, at most n; the rule is looked at
    after each wave, and all that were drawn vote. `scores` break ties, as in the strategy.
    """
    limit = min(n, len(order))
    drawn: list[str | None] = []
    votes: dict[str, int] = {}
    at: int | None = None
    ahead = False
    while len(drawn) < limit and not ahead:
        for index in order[len(drawn) : min(len(drawn) + wave, limit)]:
            key = keys[index]
            drawn.append(key)
            if key is not None:
                votes[key] = votes.get(key, 0) + 1
                ahead = beta_confidence(*_top_two(votes)) >= threshold
                at = len(drawn) if ahead and at is None else at
    used = len(drawn)
    chosen = None if scores is None else [scores[index] for index in order[:used]]
    return Replay(key=majority(drawn, chosen), used=used, overshoot=0 if at is None else used - at)


def _top_two(votes: dict[str, int]) -> tuple[int, int]:
    first = second = 0
    for count in votes.values():
        if count > first:
            first, second = count, first
        elif count > second:
            second = count
    return first, second


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

    An answer's worth is the mean grade of its samples; no answer is worth 0.
    """
    worth, counts = tally(keys, grades), tally(keys)
    generator = np.random.default_rng(seed)
    found, used, over = np.empty(orders), np.empty(orders), np.empty(orders)
    for row in range(orders):
        order = generator.permutation(len(keys)).tolist()
        replay = replay_adaptive(keys, order, threshold=threshold, n=n, wave=wave)
        found[row] = 0.0 if replay.key is None else worth[replay.key] / counts[replay.key]
        used[row], over[row] = replay.used, replay.overshoot
    root = math.sqrt(orders)
    return Adaptive(
        accuracy=float(found.mean()),
        samples=float(used.mean()),
        overshoot=float(over.mean()),
        accuracy_se=float(found.std(ddof=1)) / root if orders > 1 else math.nan,
        samples_se=float(used.std(ddof=1)) / root if orders > 1 else math.nan,
        orders=orders,
    )
