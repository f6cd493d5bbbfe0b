"""How well rewards agree with judgements: accuracy, calibration, dependence on length, by subset.

A judged prompt has K replies with rewards and lengths, and comparisons (better, worse) by index.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .intervals import bootstrap

__all__ = ["JudgedReplies", "expected_calibration_error", "pearson", "reward_report", "spearman"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedReplies:
    """One prompt's replies: rewards, lengths in tokens, comparisons (better, worse), and the subset that it belongs to."""

    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    comparisons: tuple[tuple[int, int], ...]
    subset: str | None = None

    @property
    def differences(self) -> list[float]:
        """r_better − r_worse of each comparison."""
        return [self.rewards[better] - self.rewards[worse] for better, worse in self.comparisons]


def reward_report(judged: Sequence[JudgedReplies], *, bins: int = 10) -> dict[str, Any]:
    """Return what held-out judgements say of rewards, as JSON values.

    `accuracy`: share of comparisons with r_better > r_worse, equal rewards counting half; its interval is a bootstrap over
    prompts. `ece`: see `expected_calibration_error`, of σ(|r_i − r_j|) for the preferred side. `length_correlation`:
    Spearman's of rewards and lengths, each less its prompt's mean; `longer_wins`: the share of comparisons between replies
    of different length where the longer one has the higher reward, beside the same of the judgements. `subsets`: accuracy
    and comparisons in each. Raises `ValueError` without comparisons.
    """
    judged = [one for one in judged if one.comparisons]
    if not judged:
        raise ValueError("no comparisons to report on")
    right = [[_right(d) for d in one.differences] for one in judged]
    flat = [value for values in right for value in values]
    chances = [1 / (1 + math.exp(-min(abs(d), 700.0))) for one in judged for d in one.differences]
    clusters = [k for k, values in enumerate(right) for _ in values]
    per_prompt = {"accuracy": sum(flat) / len(flat), "prompts": len(judged), "comparisons": len(flat)}
    low, high = bootstrap(flat, clusters=clusters)
    return {
        **per_prompt,
        "accuracy_ci95": [low, high],
        "ece": expected_calibration_error(chances, flat, bins=bins),
        **_length(judged),
        "subsets": _subsets(judged, right),
    }


def _right(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def expected_calibration_error(confidences: Sequence[float], right: Sequence[float], *, bins: int = 10) -> float:
    """Return Σ_b (n_b / n) |share right in b − mean confidence in b| over equal bins of [0.5, 1]; 0 is perfect.

    Confidences are those of the preferred of two sides, so none is below 0.5. Source: Guo et al. 2017 (1706.04599), eq. 3.
    """
    if len(confidences) != len(right) or not confidences:
        raise ValueError(f"{len(confidences)} confidences and {len(right)} outcomes")
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for confidence, outcome in zip(confidences, right, strict=True):
        found[min(bins - 1, int((confidence - 0.5) * 2 * bins))].append((confidence, outcome))
    return sum(abs(sum(c - o for c, o in inside)) for inside in found.values()) / len(right)


def pearson(x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any]) -> float | None:
    """Return Pearson's correlation; None where one side does not vary."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equal values with their mean rank; None where one side does not vary."""
    return pearson(rankdata(x), rankdata(y)) if len(x) > 1 else None


def _length(judged: Sequence[JudgedReplies]) -> dict[str, float | None]:
    rewards: list[float] = []
    lengths: list[float] = []
    by_reward: list[float] = []
    by_judgement: list[float] = []
    for one in judged:
        count = len(one.rewards)
        rewards += [r - sum(one.rewards) / count for r in one.rewards]
        lengths += [n - sum(one.lengths) / count for n in one.lengths]
        for (better, worse), difference in zip(one.comparisons, one.differences, strict=True):
            longer = one.lengths[better] - one.lengths[worse]
            if longer:
                by_judgement.append(float(longer > 0))
                by_reward.append(_right(difference if longer > 0 else -difference))
    return {
        "length_correlation": spearman(np.round(rewards, 9).tolist(), np.round(lengths, 9).tolist()),
        "longer_wins": sum(by_reward) / len(by_reward) if by_reward else None,
        "longer_is_judged_better": sum(by_judgement) / len(by_judgement) if by_judgement else None,
    }


def _subsets(judged: Sequence[JudgedReplies], right: Sequence[Sequence[float]]) -> Mapping[str, dict[str, float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for one, values in zip(judged, right, strict=True):
        if one.subset is not None:
            found[one.subset] += values
    return {name: {"accuracy": sum(v) / len(v), "comparisons": len(v)} for name, v in sorted(found.items())}
