"""Adaptive consistency replayed on a pool: draw in waves, stop when the leading answer is safe enough."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from .pool import Array, Indices, answers_of

__all__ = ["beta_stop", "lead_probability", "replay"]


def lead_probability(first: int, second: int) -> float:
    """Return how probable it is that the leading answer is the more frequent of the two in the long run.

    `P(p > ½) = 1 − I_½(first + 1, second + 1)` for p ~ Beta(first + 1, second + 1), the posterior of the leader's share
    under a flat prior; I is the regularised incomplete beta function, so nothing is integrated numerically.
    Source: Aggarwal et al. 2023, "Let's Sample Step by Step" (arXiv 2305.11860), the Beta stopping criterion.
    """
    if not first >= second >= 0:
        raise ValueError(f"{first} and {second} votes: give the two largest counts, the larger one first")
    return float(betainc(second + 1.0, first + 1.0, 0.5))  # I_½ reflected: exact where 1 − I would cancel


def beta_stop(first: int, second: int, confidence: float = 0.95) -> bool:
    """Return whether to stop with these two largest counts of votes: `lead_probability ≥ confidence`.

    Four votes of four are the earliest stop at 0.95 (0.969). Samples without an answer have no vote: none stops nothing.
    """
    return first > 0 and lead_probability(first, second) >= confidence


def replay(
    keys: Sequence[str | None], right: Sequence[float], orders: Indices, *, confidence: float = 0.95, wave: int = 1
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
    safe = _table(length, confidence)
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
def _table(length: int, confidence: float) -> NDArray[np.bool_]:
    """Return `beta_stop` of every pair of counts up to `length` [first, second]."""
    counts = range(length + 1)
    return np.array([[first >= second and beta_stop(first, second, confidence) for second in counts] for first in counts])
