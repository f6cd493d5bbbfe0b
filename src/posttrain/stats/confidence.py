"""Confidence of a trace from the model's own token probabilities, and whether it says anything: calibration."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from .intervals import wilson

__all__ = [
    "Bin",
    "Calibration",
    "Measure",
    "Window",
    "auroc",
    "calibration",
    "confidence_bar",
    "token_confidence",
    "trace_confidence",
]

Measure = Literal["lowest", "bottom", "tail", "mean"]


def token_confidence(top_logprobs: Sequence[float], k: int) -> float | None:
    """Return `C = −(1/k) Σ_{j ≤ k} log p_j` over the k most likely tokens: high when the distribution is peaked.

    Fewer than k are averaged as they are; impossible tokens (log p = −∞) are left out. None with fewer than two: of one
    token alone the sign turns round (a sure token has −log p near 0).
    Source: Fu et al. 2025 (arXiv 2508.15260), section 2.
    """
    known = [value for value in top_logprobs[:k] if value > -math.inf]
    return -math.fsum(known) / len(known) if len(known) > 1 else None


class Window:
    """The mean over the last `size` values, as values come in; None while there are fewer."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: deque[float] = deque()
        self._sum = 0.0

    def push(self, value: float) -> float | None:
        """Add a value and return the group confidence of the window that it closes."""
        self._values.append(value)
        self._sum += value
        if len(self._values) > self._size:
            self._sum -= self._values.popleft()
        return self._sum / self._size if len(self._values) == self._size else None


def trace_confidence(confidences: Sequence[float], window: int, measure: Measure = "lowest") -> float | None:
    """Return one number for a trace of token confidences; None for an empty trace.

    Groups are the windows of `window` tokens that lie wholly in the trace; a shorter trace is one group. "lowest": the
    lowest group mean; "bottom": the mean of the lowest 10 % of them (at least one); "tail": the last group; "mean": of
    all tokens. Source: Fu et al. 2025 (arXiv 2508.15260), section 3.
    """
    if not confidences:
        return None
    if measure == "mean":
        return math.fsum(confidences) / len(confidences)
    running = Window(window)
    groups = [mean for value in confidences if (mean := running.push(value)) is not None]
    if not groups:
        groups = [math.fsum(confidences) / len(confidences)]
    if measure == "tail":
        return groups[-1]
    if measure == "bottom":
        lowest = sorted(groups)[: max(1, len(groups) // 10)]
        return math.fsum(lowest) / len(lowest)
    return min(groups)


def confidence_bar(confidences: Sequence[float], keep: float) -> float:
    """Return the bar above which the most confident share `keep` of these traces lies: their (1 − keep) quantile.

    `keep` is the paper's η: 0.1 is DeepConf-low (few traces are kept), 0.9 DeepConf-high.
    """
    return float(np.quantile(np.asarray(confidences, dtype=float), 1.0 - keep))


def auroc(confidence: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Return the probability that a right trace is more confident than a wrong one, ties counted half; None without both.

    The Mann-Whitney statistic `(R − n₁(n₁ + 1)/2) / (n₁ n₀)`, R the sum of the right ones' midranks.
    """
    right = sum(correct)
    wrong = len(correct) - right
    if not right or not wrong:
        return None
    ranks = rankdata(confidence)
    total = math.fsum(float(rank) for rank, ok in zip(ranks, correct, strict=True) if ok)
    return (total - right * (right + 1) / 2) / (right * wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Traces of about equal confidence: how often they are right, with Wilson's interval."""

    confidence: tuple[float, float]
    n: int
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether a model's confidence tells right traces from wrong ones.

    `auroc` is over all traces, `within` the mean over questions that have both right and wrong ones: only that helps a
    vote, for confidence may do no more than tell easy questions from hard ones.
    """

    n: int
    auroc: float | None
    within: float | None
    questions: int  # with both kinds
    bins: tuple[Bin, ...]


def calibration(questions: Sequence[tuple[Sequence[float | None], Sequence[float]]], *, bins: int = 10) -> Calibration:
    """Return the calibration of questions given as (confidence, grade) of their traces; traces without one are left out.

    A grade of at least ½ is right. Bins hold equal numbers of traces, the least confident first.
    """
    kept = [
        [(c, grade >= 0.5) for c, grade in zip(confidences, grades, strict=True) if c is not None]
        for confidences, grades in questions
    ]
    flat = sorted((pair for question in kept for pair in question), key=lambda pair: pair[0])
    inside = [area for question in kept if (area := auroc([c for c, _ in question], [ok for _, ok in question])) is not None]
    edges = [round(len(flat) * i / bins) for i in range(bins + 1)]
    groups = [flat[low:high] for low, high in itertools.pairwise(edges) if high > low]
    return Calibration(
        n=len(flat),
        auroc=auroc([c for c, _ in flat], [ok for _, ok in flat]),
        within=math.fsum(inside) / len(inside) if inside else None,
        questions=len(inside),
        bins=tuple(
            Bin(
                confidence=(group[0][0], group[-1][0]),
                n=len(group),
                accuracy=sum(ok for _, ok in group) / len(group),
                ci95=wilson(sum(ok for _, ok in group), len(group)),
            )
            for group in groups
        ),
    )
