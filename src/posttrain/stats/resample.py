"""Intervals over questions: whole questions are drawn again, the same for every curve, so that comparisons are paired."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .intervals import wilson
from .pool import Array

__all__ = ["interval", "mean_interval", "question_weights", "resampled"]


@lru_cache(maxsize=8)
def question_weights(questions: int, draws: int = 2000, seed: int = 0) -> Array:
    """Return bootstrap weights [draws, questions], each row summing to 1: how often a question was drawn, over their number.

    Questions are the clusters: all samples of a question move together.
    """
    if questions < 1:
        raise ValueError("no questions to draw from")
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(questions, np.full(questions, 1.0 / questions), size=draws) / questions
    weights.setflags(write=False)
    return weights


def resampled(values: Array, *, draws: int = 2000, seed: int = 0) -> Array:
    """Return the means of [questions] or [questions, columns] under each bootstrap draw: [draws] or [draws, columns]."""
    means: Array = question_weights(len(values), draws, seed) @ values
    return means


def interval(estimates: Array, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap estimates; infinite ones (a crossing that never comes) stay infinite."""
    ordered = np.sort(estimates)
    last = len(ordered) - 1
    low = ordered[math.floor((1 - level) / 2 * last)]
    high = ordered[math.ceil((1 + level) / 2 * last)]
    return float(low), float(high)


def mean_interval(values: Array, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the mean of per-question scores in [0, 1]: percentile bootstrap over questions.

    A question's score is an expectation over its samples, estimated without bias, so that its spread over questions holds
    both the choice of questions and the choice of samples. Where all questions score the same, the bootstrap would be a
    point; Wilson's interval is given then, which is conservative for scores in [0, 1].
    """
    if float(np.ptp(values)) < 1e-12:
        mean = min(max(float(values.mean()), 0.0), 1.0)
        return wilson(mean * len(values), len(values), level=level)
    return interval(resampled(values, draws=draws, seed=seed), level=level)
