"""What voting brings by difficulty, and what revising does to answers: read from the rows of an evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import DataError
from .intervals import bootstrap

__all__ = ["Flips", "GainBin", "flips", "gain_by_agreement"]


class Chosen(Protocol):
    """What is read of a row."""

    @property
    def example(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def candidates(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def trace(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GainBin:
    """Questions whose samples agree about equally: the vote against the mean single sample."""

    agreement: tuple[float, float]  # lowest and highest share of samples that hold the most frequent answer
    n: int
    single: float
    vote: float
    gain: float
    ci95: tuple[float, float]  # of the gain, bootstrap over questions


def gain_by_agreement(rows: Sequence[Chosen], *, bins: int = 4, seed: int = 0) -> list[GainBin]:
    """Return the gain of the vote over the mean single sample by quantile of agreement, the hardest questions first.

    Agreement is the share of all samples (unparsed ones too) with the most frequent answer: a measure of difficulty that
    needs no gold answer. Questions of equal agreement stay in one bin, so there may be fewer bins than asked.

    Raises:
        DataError: a row without votes or candidates: not one of a strategy that votes.
    """
    items = sorted(((_agreement(row), _single(row), row.score or 0.0) for row in rows), key=lambda item: item[0])
    if not items:
        raise DataError("no rows: the gain of a vote needs an evaluation with self_consistency")
    groups: list[list[tuple[float, float, float]]] = []
    for index, item in enumerate(items):
        full = not groups or index * bins >= len(groups) * len(items)
        if full and not (groups and groups[-1][-1][0] == item[0]):
            groups.append([])
        groups[-1].append(item)
    found = []
    for group in groups:
        gains = [vote - single for _, single, vote in group]
        n = len(group)
        found.append(
            GainBin(
                agreement=(group[0][0], group[-1][0]),
                n=n,
                single=math.fsum(single for _, single, _ in group) / n,
                vote=math.fsum(vote for _, _, vote in group) / n,
                gain=math.fsum(gains) / n,
                ci95=bootstrap(gains, seed=seed),
            )
        )
    return found


def _agreement(row: Chosen) -> float:
    votes = row.trace.get("votes")
    if not isinstance(votes, Mapping) or not row.candidates:
        raise DataError(
            f"example '{row.example}' has no votes in its trace: give the rows of self_consistency or adaptive_consistency"
        )
    return max(votes.values(), default=0) / len(row.candidates)


def _single(row: Chosen) -> float:
    return math.fsum(float(candidate["score"]) for candidate in row.candidates) / len(row.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """What revising did: shares of n questions, and the accuracy after each round.

    A question that stopped before a round keeps its last answer in it.
    """

    n: int
    first: float
    final: float
    wrong_to_right: float
    right_to_wrong: float
    drifted: float  # the answer given is another than the first one
    rounds: tuple[float, ...]
    step_wrong_to_right: int  # counts over all single revisions
    step_right_to_wrong: int


def flips(rows: Sequence[Chosen]) -> Flips:
    """Return how often revising made wrong answers right and right ones wrong, from candidates in the order of writing.

    `final − first = wrong_to_right − right_to_wrong` for grades 0 and 1 (a grade of at least ½ counts as right). Revising
    without an outside signal often loses (Huang et al. 2023, arXiv 2310.01798): look at both.
    """
    if not rows:
        raise DataError("no rows: flips need an evaluation with self_refine")
    paths = []
    for row in rows:
        if not row.candidates:
            raise DataError(f"example '{row.example}' has no candidates: give the rows of self_refine")
        paths.append([float(candidate["score"]) >= 0.5 for candidate in row.candidates])
    final = [(row.score or 0.0) >= 0.5 for row in rows]
    n = len(rows)
    longest = max(map(len, paths))
    steps = [(before, after) for path in paths for before, after in itertools.pairwise(path)]
    return Flips(
        n=n,
        first=sum(path[0] for path in paths) / n,
        final=sum(final) / n,
        wrong_to_right=sum(not path[0] and end for path, end in zip(paths, final, strict=True)) / n,
        right_to_wrong=sum(path[0] and not end for path, end in zip(paths, final, strict=True)) / n,
        drifted=sum(bool(row.trace.get("drifted")) for row in rows) / n,
        rounds=tuple(sum(path[min(r, len(path) - 1)] for path in paths) / n for r in range(longest)),
        step_wrong_to_right=steps.count((False, True)),
        step_right_to_wrong=steps.count((True, False)),
    )
