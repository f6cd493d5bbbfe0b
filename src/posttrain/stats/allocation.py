"""Compute-optimal allocation: from a graded pool of samples to a table that says what pays for which difficulty."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError, DataError
from .allocate import frontier
from .allocation_table import Difficulty, Row, Rule, Table
from .vote import answer_entropy

__all__ = ["Pool", "allocate", "assess", "difficulty_of", "fit", "pool_of", "uniform"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The graded samples of one question: equivalence keys (None: unparsed), grades, and what they cost.

    `tokens` are the generated tokens of each sample, `prompt` those of the prompt (charged once a call); `values` a
    verifier's scores, at `scoring` tokens each.
    """

    keys: tuple[str | None, ...]
    grades: tuple[float, ...]
    tokens: tuple[float, ...]
    prompt: float = 0.0
    values: tuple[float, ...] | None = None
    scoring: float = 0.0


class Sampled(Protocol):
    """What is read of a ledger's row."""

    @property
    def candidates(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def cost(self) -> Mapping[str, Mapping[str, float]]: ...


def pool_of(row: Sampled, key: Callable[[str], str], values: Sequence[float] | None = None, scoring: float = 0.0) -> Pool:
    """Return the pool of a row of an evaluation with `sample:n=…`, answers grouped by the task's `key`.

    A row knows the generated tokens of all its samples together, so each counts as their mean.
    """
    answers = [candidate["answer"] for candidate in row.candidates]
    paid = row.cost["policy"]
    return Pool(
        keys=tuple(None if answer is None else key(answer) for answer in answers),
        grades=tuple(float(candidate["score"]) for candidate in row.candidates),
        tokens=(paid["generated"] / len(answers),) * len(answers),
        prompt=paid["prompt"] / paid["calls"],
        values=None if values is None else tuple(values),
        scoring=scoring,
    )


def difficulty_of(
    kind: Difficulty, keys: Sequence[str | None], values: Sequence[float] | None = None, *, accept: float = 1.0
) -> float:
    """Return the difficulty that the pilot samples show; higher is harder.

    "entropy": that of their answers over log m, in [0, 1]; each unparsed sample counts as an answer of its own.
    "agreement": how many do not have the most frequent answer; an unparsed sample has none. "score": minus the mean of the
    verifier's scores. "accepted": how many of them have a score below `accept`, or none.
    Source: Snell et al. 2024 (arXiv 2408.03314), section 3.2 (model-predicted difficulty, by a verifier); the first two
    need none.
    """
    if kind == "score":
        if not values:
            raise ValueError("difficulty by score needs the pilot's scores")
        return -math.fsum(values) / len(values)
    if kind == "accepted":
        return float(len(keys) - sum(value >= accept for value in values or ()))
    if kind == "agreement":
        return float(len(keys) - max(Counter(key for key in keys if key is not None).values(), default=0))
    if len(keys) < 2:
        return 0.0 if keys and keys[0] is not None else 1.0
    own = [f"?{i}" if key is None else f"={key}" for i, key in enumerate(keys)]
    return answer_entropy(own) / math.log(len(keys))


def allocate(
    shares: Sequence[float], accuracy: Sequence[Sequence[float]], cost: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Return for each bin the choice that maximises mean accuracy at a mean cost of at most `budget`: exactly.

    max Σ_b s_b·A[b][c_b] subject to Σ_b s_b·C[b][c_b] ≤ budget (the multiple-choice knapsack); the last of `frontier` that
    fits. Raises `ConfigError` when nothing fits.
    """
    share = np.asarray(shares, dtype=float)[:, None]
    front = frontier(share * np.asarray(accuracy, dtype=float), share * np.asarray(cost, dtype=float))
    fitting = [item for item in front if item[0] <= budget * (1 + 1e-9)]
    if not fitting:
        raise ConfigError(
            f"a budget of {budget:.4g} tokens a question is below the cheapest allocation ({front[0][0]:.4g}): raise it, or "
            "use fewer pilot samples"
        )
    return list(fitting[-1][2])


def fit(
    pools: Sequence[Pool],
    *,
    budget: float,
    pilot: int = 4,
    sizes: Sequence[int] = (4, 8, 16, 32),
    rules: Sequence[Rule] = ("majority",),
    difficulty: Difficulty = "entropy",
    verifier: str | None = None,
    accept: float = 1.0,
    bins: int = 5,
    orders: int = 1000,
    seed: int = 0,
) -> Table:
    """Fit a table: rule and n for each bin of difficulty, so that mean accuracy is highest at `budget` tokens a question.

    Accuracy and cost of each choice are expectations over sample orders (all of them when these are no more than
    `orders`, else seeded random ones) of drawing `pilot` samples, binning the question by them, and drawing the rest: the
    pilot's own cost and its chance of misjudging a question are in. Bins are quantiles of the pilots' difficulties. The
    budget counts the policy's tokens, the prompt once a call, and the verifier's. Judge a table on other questions
    (`assess`).

    Raises:
        ConfigError: sizes below the pilot or above a pool, rules without the scores they need, too small a budget.
    """
    _check(pools, pilot, sizes, rules, difficulty, verifier)
    choices = [(rule, n) for rule in rules for n in sorted(set(sizes))]
    played = [_play(pool, pilot, choices, difficulty, orders, seed + i, accept=accept) for i, pool in enumerate(pools)]
    weight = np.concatenate([np.full(len(p.difficulty), 1.0 / len(p.difficulty)) for p in played])
    hard = np.concatenate([p.difficulty for p in played])
    grades, tokens = np.concatenate([p.grades for p in played]), np.concatenate([p.tokens for p in played])
    edges = _edges(hard, weight, bins)
    member = np.searchsorted(np.asarray(edges), hard, side="left")
    shares, accuracy, cost = [], [], []
    for b in range(len(edges) + 1):
        inside = member == b
        mass = weight[inside]
        shares.append(float(mass.sum() / weight.sum()))
        accuracy.append((mass @ grades[inside] / mass.sum()).tolist())
        cost.append((mass @ tokens[inside] / mass.sum()).tolist())
    chosen = allocate(shares, accuracy, cost, budget)
    rows = tuple(
        Row(upto=upto, rule=choices[c][0], n=choices[c][1], share=shares[b], accuracy=accuracy[b][c], tokens=cost[b][c])
        for b, (upto, c) in enumerate(zip([*edges, None], chosen, strict=True))
    )
    return Table(
        pilot=pilot,
        difficulty=difficulty,
        verifier=verifier,
        rows=rows,
        accuracy=math.fsum(row.share * row.accuracy for row in rows),
        tokens=math.fsum(row.share * row.tokens for row in rows),
        questions=len(pools),
        accept=accept,
    )


def assess(table: Table, pools: Sequence[Pool], *, orders: int = 1000, seed: int = 0) -> list[tuple[float, float]]:
    """Return the expected (accuracy, tokens) of a table on each question's pool, the pilot's cost included."""
    choices = sorted({(row.rule, row.n) for row in table.rows})
    rules, sizes = [rule for rule, _ in choices], [n for _, n in choices]
    _check(pools, table.pilot, sizes, rules, table.difficulty, table.verifier)
    found = []
    for i, pool in enumerate(pools):
        played = _play(pool, table.pilot, choices, table.difficulty, orders, seed + i, accept=table.accept)
        at = [choices.index((row.rule, row.n)) for d in played.difficulty for row in [table.row(float(d))[1]]]
        lines = np.arange(len(at))
        found.append((float(played.grades[lines, at].mean()), float(played.tokens[lines, at].mean())))
    return found


def uniform(pools: Sequence[Pool], rule: Rule, n: int, *, orders: int = 1000, seed: int = 0) -> list[tuple[float, float]]:
    """Return the expected (accuracy, tokens) of the same rule and n for every question, drawn in one call."""
    _check(pools, n, [n], [rule], "entropy", None)
    found = []
    for i, pool in enumerate(pools):
        played = _play(pool, n, [(rule, n)], "entropy", orders, seed + i)
        found.append((float(played.grades.mean()), float(played.tokens.mean())))
    return found


@dataclass(frozen=True, slots=True)
class _Played:
    difficulty: Floats  # [orders]
    grades: Floats  # [orders, choices]
    tokens: Floats  # [orders, choices]


def _play(
    pool: Pool,
    pilot: int,
    choices: Sequence[tuple[Rule, int]],
    kind: Difficulty,
    orders: int,
    seed: int,
    *,
    accept: float = 1.0,
) -> _Played:
    """Play each order: the pilot's difficulty, and for each choice the expected grade of its answer and the tokens paid."""
    size = len(pool.keys)
    if size <= 8 and math.factorial(size) <= orders:
        perms = np.asarray(list(itertools.permutations(range(size))))
    else:
        generator = np.random.default_rng(seed)
        perms = np.argsort(generator.random((orders, size)), axis=1)
    names = sorted({key for key in pool.keys if key is not None})
    hot = np.asarray([[float(key == name) for name in names] for key in pool.keys]).reshape(size, len(names))
    grades = np.asarray(pool.grades, dtype=float)
    worth = (grades @ hot) / hot.sum(axis=0) if names else np.zeros(0)
    values = np.asarray(pool.values if pool.values is not None else [1.0] * size, dtype=float)
    parsed = hot.sum(axis=1) > 0
    hard = np.asarray(
        [
            difficulty_of(kind, [pool.keys[i] for i in perm], values[perm].tolist(), accept=accept)
            for perm in perms[:, :pilot].tolist()
        ]
    )
    written = np.cumsum(np.asarray(pool.tokens, dtype=float)[perms], axis=1)
    found, paid = np.zeros((len(perms), len(choices))), np.zeros((len(perms), len(choices)))
    for c, (rule, n) in enumerate(choices):
        taken = perms[:, :n]
        if rule == "best":
            score = np.where(parsed[taken], values[taken], -np.inf)
            top = (score == score.max(axis=1, keepdims=True)) & parsed[taken]
            found[:, c] = (top * grades[taken]).sum(axis=1) / np.maximum(top.sum(axis=1), 1)
        elif names:
            weights = hot if rule == "majority" else hot * values[:, None]
            sums = weights[taken].sum(axis=1)
            top = (sums >= sums.max(axis=1, keepdims=True) - 1e-12) & (hot[taken].sum(axis=1) > 0)  # ties are shared
            found[:, c] = (top * worth).sum(axis=1) / np.maximum(top.sum(axis=1), 1)
        scored = n if rule != "majority" else pilot if kind in ("score", "accepted") else 0
        paid[:, c] = written[:, n - 1] + pool.prompt * (2 if n > pilot else 1) + pool.scoring * scored
    return _Played(hard, found, paid)


def _edges(hard: Floats, weight: Floats, bins: int) -> list[float]:
    """Return the upper ends of all bins but the last: weighted quantiles, each a difficulty that occurs, none twice."""
    order = np.argsort(hard, kind="stable")
    mass = np.cumsum(weight[order]) / weight.sum()
    places = [int(np.searchsorted(mass, (i + 1) / bins - 1e-9)) for i in range(bins - 1)]
    edges = sorted({float(hard[order][place]) for place in places})
    return [edge for edge in edges if edge < float(hard.max())]


def _check(
    pools: Sequence[Pool],
    pilot: int,
    sizes: Sequence[int],
    rules: Sequence[str],
    difficulty: str,
    verifier: str | None,
) -> None:
    if not pools:
        raise DataError("no questions to fit an allocation on: give the graded samples of an evaluation with sample:n=…")
    smallest = min(len(pool.keys) for pool in pools)
    if pilot < 1 or min(sizes) < pilot or max(sizes) > smallest:
        raise ConfigError(
            f"sizes {sorted(set(sizes))} with a pilot of {pilot}: sizes lie between the pilot and the smallest pool, "
            f"which has {smallest} samples"
        )
    scored = difficulty in ("score", "accepted") or any(rule != "majority" for rule in rules)
    if scored and any(pool.values is None for pool in pools):
        raise ConfigError("difficulty by score and the rules weighted and best need a verifier's scores in every pool")
    if "weighted" in rules and any(min(pool.values or (0.0,)) < 0 for pool in pools):
        raise ConfigError("rule weighted sums scores, and some are negative: map raw rewards through a sigmoid first")
