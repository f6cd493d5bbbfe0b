"""Compute-optimal allocation on a pool: a few pilot samples tell how hard a question is, a table says how many more to draw.

The table is fitted on one half of the questions and judged on the other, both ways, pilot samples paid and used.
Source: Snell et al. 2024 (arXiv 2408.03314), section 3, who bin by difficulty and cross-fit but leave the estimate unpaid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.seeds import derive
from .allocation_table import Row, Rule, Table
from .curves import Estimate, best_of_prefixes, vote_prefixes
from .pool import Array, Indices, Item, Scores, answers_of, orders_of

__all__ = ["Option", "Prospects", "allocated_curve", "best_table", "frontier", "halves", "prospects", "table_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What may be done with a question: a rule over n samples in all, the pilot's among them."""

    rule: Rule  # best and weighted: by a verifier's scores
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospects:
    """What each option brings, question by question and level of difficulty, as expectations over orders of the samples.

    `right[q, b, o]` is E[1{level = b} · score of option o], `tokens`, `flops` and `samples` likewise: a table
    `level → option` then scores Σ_b right[q, b, table[b]]. `variance` bounds the Monte-Carlo variance of such a sum, 0
    where all orders were taken.
    """

    options: tuple[Option, ...]
    right: Array
    tokens: Array
    flops: Array
    samples: Array
    variance: Array


def agreement(item: Item, orders: Indices, pilot: int) -> Indices:
    """Return the leading answer's votes among the first `pilot` samples of every order: all agree, or 0: nothing parsed."""
    given, _ = answers_of(item.keys, item.right)
    if not given.shape[1]:
        return np.zeros(len(orders), dtype=np.int64)
    votes = given[orders[:, :pilot]].sum(axis=1)
    return np.asarray(votes.max(axis=1), dtype=np.int64)


def accepted(scores: Scores, orders: Indices, pilot: int, accept: float) -> Indices:
    """Return how many of the first `pilot` samples of every order the verifier gives a score of at least `accept`."""
    good = np.array([value is not None and value >= accept for value in scores.values])
    return np.asarray(good[orders[:, :pilot]].sum(axis=1), dtype=np.int64)


def prospects(
    items: Sequence[Item],
    options: Sequence[Option],
    *,
    pilot: int,
    scores: Mapping[str, Scores] | None = None,
    accept: float | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Prospects:
    """Return what each option would bring at each level of ease that `pilot` samples show (levels 0 … pilot).

    The level is how many of them agree; with `accept`, how many of them the verifier gives at least that score. Both are
    told without the gold answer, so that they can be for a new question. An option that uses a verifier pays for scoring
    all its samples; with `accept` every option pays for scoring the pilot's.
    """
    if accept is not None and scores is None:
        raise ValueError("a level by accepted samples needs a verifier's scores")
    for option in options:
        if option.n < pilot:
            raise ValueError(f"an option of {option.n} samples is below the pilot's {pilot}, which are drawn first")
        if option.rule != "majority" and scores is None:
            raise ValueError(f"option '{option.rule}' needs a verifier's scores")
    shape = (len(items), pilot + 1, len(options))
    right, tokens, flops, samples = (np.zeros(shape) for _ in range(4))
    variance = np.zeros(len(items))
    length = max(option.n for option in options)
    for q, item in enumerate(items):
        orders = orders_of(item, length, draws, seed=seed)
        own = scores[item.id] if scores else None
        level = agreement(item, orders, pilot) if own is None or accept is None else accepted(own, orders, pilot, accept)
        share = np.equal(level[None, :], np.arange(pilot + 1)[:, None]) / len(orders)  # [levels, orders]
        value, token, flop = _brought(item, options, own, orders, pilot, judged=accept is not None)
        right[q], tokens[q], flops[q] = share @ value, share @ token, share @ flop
        samples[q] = share.sum(axis=1)[:, None] * np.array([option.n for option in options])
        if math.perm(item.n, length) > draws and float(np.ptp(value)) > 0:
            variance[q] = 0.25 / len(orders)  # no score in [0, 1] varies more
    return Prospects(options=tuple(options), right=right, tokens=tokens, flops=flops, samples=samples, variance=variance)


def _brought(
    item: Item, options: Sequence[Option], scores: Scores | None, orders: Indices, pilot: int, *, judged: bool
) -> tuple[Array, Array, Array]:
    """Return score, tokens and FLOPs of each option in each order: [orders, options]."""
    sizes = sorted({option.n for option in options})
    tables = {"majority": vote_prefixes(item, None, orders, sizes)}
    if scores is not None:
        tables["best"] = best_of_prefixes(item, scores.values, orders, sizes)
        tables["weighted"] = vote_prefixes(item, [value or 0.0 for value in scores.values], orders, sizes)
    value = np.stack([tables[option.rule][:, sizes.index(option.n)] for option in options], axis=1)
    calls = [1 if option.n <= pilot else 2 for option in options]  # each reads the prompt
    paid = []
    for own, more, once in (
        (item.tokens, scores.tokens if scores else None, item.prompt_tokens),
        (item.flops, scores.flops if scores else None, item.prompt_flops),
    ):
        plain = np.cumsum(np.asarray(own, dtype=float)[orders], axis=1)
        scoring = np.zeros_like(plain) if more is None else np.cumsum(np.asarray(more, dtype=float)[orders], axis=1)
        checked = plain + scoring
        if judged:
            plain = plain + scoring[:, pilot - 1 : pilot]
        columns = [(plain if option.rule == "majority" else checked)[:, option.n - 1] for option in options]
        paid.append(once * np.array(calls) + np.stack(columns, axis=1))
    return value, paid[0], paid[1]


def frontier(right: Array, cost: Array) -> list[tuple[float, float, tuple[int, ...]]]:
    """Return every table that no other beats as (cost, accuracy, option per level), cheapest first.

    Inputs are [levels, options]. Exact: levels are added one by one, and of the partial tables those are dropped that
    another beats in both sums, which no later level can make up for.
    """
    kept: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for gains, prices in zip(right, cost, strict=True):
        grown = sorted(
            ((paid + float(price), got + float(gain), (*table, option))
             for paid, got, table in kept
             for option, (gain, price) in enumerate(zip(gains, prices, strict=True))),
            key=lambda entry: (entry[0], -entry[1], entry[2]),
        )  # fmt: skip
        kept = []
        for entry in grown:
            if not kept or entry[1] > kept[-1][1] + 1e-12:
                kept.append(entry)
    return kept


def best_table(front: Sequence[tuple[float, float, tuple[int, ...]]], budget: float) -> tuple[int, ...]:
    """Return the most accurate table whose mean cost is within the budget; the cheapest one if none is."""
    within = [entry for entry in front if entry[0] <= budget * (1 + 1e-12)]
    return (within[-1] if within else front[0])[2]


def _fronts(found: Prospects, fit: NDArray[np.bool_]) -> tuple[list[tuple[float, float, tuple[int, ...]]], list[int]]:
    """Return the frontier over the levels that some questions show, and for every level the place of the nearest one."""
    seen = np.flatnonzero(found.samples[fit].sum(axis=(0, 2)) > 0)
    nearest = [int(np.argmin(np.abs(seen - level))) for level in range(found.right.shape[1])]
    return frontier(found.right[fit].mean(axis=0)[seen], found.tokens[fit].mean(axis=0)[seen]), nearest


def table_of(found: Prospects, budget: float, *, verifier: str | None = None, accept: float | None = None) -> Table:
    """Return the most accurate table at a mean of `budget` tokens, fitted on all questions: what `compute_optimal` reads.

    A row for every level of agreement (with `accept`: of acceptance), from all pilot samples to none; one that no question
    showed takes the nearest one's option. The cheapest table if the budget pays for none.
    """
    questions, levels, _ = found.right.shape
    front, nearest = _fronts(found, np.ones(questions, dtype=bool))
    fitted = best_table(front, budget)
    rows = []
    for level in reversed(range(levels)):
        at = fitted[nearest[level]]
        option = found.options[at]
        right, tokens, samples = (float(part[:, level, at].mean()) for part in (found.right, found.tokens, found.samples))
        share = samples / option.n
        rows.append(
            Row(
                upto=float(levels - 1 - level) if level else None,
                rule=option.rule,
                n=option.n,
                share=share,
                accuracy=right / share if share else 0.0,
                tokens=tokens / share if share else 0.0,
            )
        )
    return Table(
        pilot=levels - 1,
        difficulty="agreement" if accept is None else "accepted",
        accept=1.0 if accept is None else accept,
        verifier=verifier,
        rows=tuple(rows),
        accuracy=math.fsum(row.share * row.accuracy for row in rows),
        tokens=math.fsum(row.share * row.tokens for row in rows),
        questions=questions,
    )


def halves(items: Sequence[Item], seed: int) -> Array:
    """Return which half (0 or 1) each question is in: equal in size, drawn by the questions' ids and the seed."""
    order = sorted(range(len(items)), key=lambda index: derive(seed, "half", items[index].id))
    half = np.zeros(len(items))
    half[order[len(items) // 2 :]] = 1.0
    return half


def allocated_curve(
    items: Sequence[Item],
    found: Prospects,
    budgets: Mapping[int, Array],
    *,
    splits: int = 10,
    seed: int = 0,
) -> list[Estimate]:
    """Return held-out accuracy and cost of compute-optimal allocation at the mean tokens of `budgets` (label → [questions]).

    Each question is judged by tables fitted on the half it is not in (the budget is the mean over that half), averaged over
    `splits` ways to halve. The table may overdraw its budget on the other half, so the cost is what is paid there. A level
    that the fitting half never showed takes the option of the nearest level that it did.
    """
    if len(items) < 2:
        raise ValueError("allocation is fitted on one half of the questions and judged on the other: give two or more")
    totals = {label: np.zeros((4, len(items))) for label in budgets}
    for split in range(splits):
        half = halves(items, derive(seed, "split", split))
        for side in (0.0, 1.0):
            fit, held = half == side, half != side
            front, nearest = _fronts(found, fit)
            for label, paid in budgets.items():
                fitted = best_table(front, float(paid[fit].mean()))
                table = np.array([fitted[place] for place in nearest])
                for row, values in enumerate((found.right, found.samples, found.tokens, found.flops)):
                    chosen = values[held][:, np.arange(len(table)), table].sum(axis=1)
                    totals[label][row, held] += chosen / splits
    return [
        Estimate(n=label, right=rows[0], samples=rows[1], tokens=rows[2], flops=rows[3], variance=found.variance)
        for label, rows in totals.items()
    ]
