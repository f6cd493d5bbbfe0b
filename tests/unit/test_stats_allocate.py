"""Allocation and crossings: against enumeration, known frontiers, held-out honesty, and curves whose crossing is known."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.stats.allocate import Option, allocated_curve, best_table, frontier, halves, prospects, table_of
from posttrain.stats.allocation import Pool, assess
from posttrain.stats.allocation_table import parse_table
from posttrain.stats.crossing import Track, overtaking, reach, reached_cost, saving
from posttrain.stats.curves import costs_at, majority_curve
from posttrain.stats.pool import Item, Scores


def item(keys: list[str | None], name: str = "q") -> Item:
    return Item(
        id=name,
        keys=tuple(keys),
        right=tuple(float(key == "a") for key in keys),
        tokens=tuple(float(5 + i) for i in range(len(keys))),
        flops=(1.0,) * len(keys),
        prompt_tokens=20.0,
    )


def majority_by_hand(keys: list[str | None]) -> float:
    votes = Counter(key for key in keys if key is not None)
    top = [key for key, count in votes.items() if count == max(votes.values())]
    return ("a" in top) / len(top) if top else 0.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=3, max_size=6), st.integers(1, 3), st.sampled_from([None, 0.3])
)
def test_prospects_equal_enumeration_of_all_orders(keys: list[str | None], pilot: int, accept: float | None) -> None:
    one = item(keys)
    values = [0.3 * index % 0.7 for index in range(one.n)]
    scored = {"q": Scores(values=tuple(values), tokens=(2.0,) * one.n, flops=(0.0,) * one.n)}
    options = [Option(rule=rule, n=n) for rule in ("majority", "best", "weighted") for n in range(pilot, one.n + 1)]
    found = prospects([one], options, pilot=pilot, scores=scored, accept=accept)
    orders = list(itertools.permutations(range(one.n)))
    for place, option in enumerate(options):
        right, tokens, share = np.zeros(pilot + 1), np.zeros(pilot + 1), np.zeros(pilot + 1)
        for order in orders:
            votes = Counter(keys[i] for i in order[:pilot] if keys[i] is not None)
            level = max(votes.values(), default=0)
            if accept is not None:
                level = sum(values[i] >= accept for i in order[:pilot])
            taken = list(order[: option.n])
            if option.rule == "majority":
                value = majority_by_hand([keys[i] for i in taken])
            elif option.rule == "best":
                parsed = [i for i in taken if keys[i] is not None] or taken
                best = [i for i in parsed if values[i] == max(values[j] for j in parsed)]
                value = sum(keys[i] == "a" for i in best) / len(best)
            else:
                sums: Counter[str] = Counter()
                for i in taken:
                    if keys[i] is not None:
                        sums[keys[i]] += values[i]
                top = [key for key in sums if math.isclose(sums[key], max(sums.values()), abs_tol=1e-12)]
                most = max((sum(keys[i] == key for i in taken) for key in top), default=0)
                top = [key for key in top if sum(keys[i] == key for i in taken) == most]
                value = ("a" in top) / len(top) if top else 0.0
            right[level] += value / len(orders)
            share[level] += 1 / len(orders)
            calls = 2 if option.n > pilot else 1  # each reads the prompt
            judged = 0 if accept is None else pilot
            extra = 2.0 * (option.n if option.rule != "majority" else judged)
            tokens[level] += (20 * calls + sum(one.tokens[i] for i in taken) + extra) / len(orders)
        assert found.right[0, :, place] == pytest.approx(right, abs=1e-9)
        assert found.tokens[0, :, place] == pytest.approx(tokens, abs=1e-9)
        assert found.samples[0, :, place] == pytest.approx(share * option.n, abs=1e-9)
    assert found.variance[0] == 0.0


@pytest.mark.parametrize("accept", [None, 0.5])
def test_a_table_keeps_its_promise(accept: float | None) -> None:
    """What the table says of its questions is what its assessment in all orders finds, by a computation of its own."""
    items = simulated(12, 5, samples=6)
    values = {one.id: tuple(0.9 if right else 0.1 * (i % 2) for i, right in enumerate(one.right)) for one in items}
    scores = {one.id: Scores(values=values[one.id], tokens=(1.0,) * 6, flops=(0.0,) * 6) for one in items}
    rules = ("majority",) if accept is None else ("majority", "best")
    options = [Option(rule=rule, n=n) for rule in rules for n in (2, 3, 4, 6)]
    judge = {} if accept is None else {"scores": scores, "accept": accept}
    found = prospects(items, options, pilot=2, draws=800, **judge)
    told = {} if accept is None else {"verifier": "rule", "accept": accept}
    pools = [
        Pool(
            keys=one.keys, grades=one.right, tokens=one.tokens, prompt=one.prompt_tokens, values=values[one.id],
            scoring=0.0 if accept is None else 1.0,
        )
        for one in items
    ]  # fmt: skip
    for budget in (54.0, 80.0, 110.0):
        table = parse_table(table_of(found, budget, **told).to_json(), "here")
        assert [row.upto for row in table.rows] == [0.0, 1.0, None]
        assert sum(row.share for row in table.rows) == pytest.approx(1.0)
        judged = assess(table, pools, orders=800)
        assert table.accuracy == pytest.approx(sum(right for right, _ in judged) / 12)
        assert table.tokens == pytest.approx(sum(paid for _, paid in judged) / 12)
        assert table.tokens <= budget
    never = table_of(prospects([item(["a"] * 6)], [Option(rule="majority", n=4)], pilot=2), 1e9)
    assert [(row.n, row.share) for row in never.rows] == [(4, 1.0), (4, 0.0), (4, 0.0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_the_frontier_holds_the_best_table_of_every_budget(levels: int, options: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    right, cost = rng.integers(0, 6, (levels, options)) / 5, rng.integers(1, 8, (levels, options)).astype(float)
    front = frontier(right, cost)
    tables = list(itertools.product(range(options), repeat=levels))
    rows = np.arange(levels)
    for budget in np.arange(levels, 8 * levels + 1):
        within = [right[rows, table].sum() for table in tables if cost[rows, table].sum() <= budget]
        if within:
            table = best_table(front, float(budget))
            assert cost[rows, table].sum() <= budget
            assert right[rows, table].sum() == pytest.approx(max(within))
    cheapest = best_table(front, 0.0)  # nothing fits
    assert cost[rows, cheapest].sum() == pytest.approx(cost.min(axis=1).sum())


def simulated(questions: int, seed: int, samples: int = 24) -> list[Item]:
    """A third each: sure, undecided between two answers, hopeless (all answers differ)."""
    rng = random.Random(seed)
    items = []
    for index in range(questions):
        kind = index % 3
        keys: list[str | None] = [
            "a" if rng.random() < (0.97, 0.62, 0.0)[kind] else "b" if kind < 2 else str(rng.randrange(500))
            for _ in range(samples)
        ]
        items.append(item(keys, f"{seed}-{index}"))
    return items


def test_allocation_saves_tokens_on_held_out_questions() -> None:
    items = simulated(180, 1)
    grid = [4, 6, 8, 12, 16, 20, 24]
    found = prospects(items, [Option(rule="majority", n=n) for n in grid], pilot=4, draws=500)
    budgets = {n: costs_at(items, n)[0] for n in (4, 8, 16, 24)}
    curve = {point.n: point for point in allocated_curve(items, found, budgets, splits=4)}
    uniform = {point.n: point.right.mean() for point in majority_curve(items, [4, 8, 16, 24])}
    assert curve[4].right.mean() == pytest.approx(uniform[4], abs=0.01)  # the pilot alone: nothing to choose
    assert curve[4].samples.mean() == pytest.approx(4.0)
    assert curve[8].right.mean() > uniform[8] + 0.02
    for n, point in curve.items():  # held out, the budget is kept but for chance
        assert point.tokens.mean() < 1.05 * budgets[n].mean()
        assert point.samples.mean() >= 4.0
    # four answers that all differ: only a hopeless question, which is given the pilot and no more whatever the budget
    assert curve[24].samples[2::3].mean() < 4.5
    assert curve[24].right.mean() == pytest.approx(uniform[24], abs=0.005)
    assert curve[24].tokens.mean() < 0.8 * budgets[24].mean()


def test_tables_are_never_judged_on_the_questions_that_fitted_them() -> None:
    """With answers that are pure chance there is nothing to learn; a table judged where it was fitted would look better."""
    rng = random.Random(3)
    gains = []
    for trial in range(30):
        items = [item([rng.choice("ab") for _ in range(6)], f"{trial}-{index}") for index in range(10)]
        found = prospects(items, [Option(rule="majority", n=n) for n in (2, 3, 4, 5, 6)], pilot=2, draws=800)
        (point,) = allocated_curve(items, found, {6: costs_at(items, 6)[0]}, splits=2, seed=trial)
        gains.append(point.right.mean() - 0.5)
    assert abs(np.mean(gains)) < 3 * np.std(gains, ddof=1) / math.sqrt(len(gains))


def test_halves_are_halves_and_need_two_questions() -> None:
    items = [item(["a", "b"], str(index)) for index in range(7)]
    assert sorted(Counter(halves(items, 0)).values()) == [3, 4]
    assert (halves(items, 0) == halves(list(items), 0)).all()
    found = prospects(items[:1], [Option(rule="majority", n=2)], pilot=1)
    with pytest.raises(ValueError, match="two or more"):
        allocated_curve(items[:1], found, {2: costs_at(items[:1], 2)[0]})
    with pytest.raises(ValueError, match="below the pilot"):
        prospects(items, [Option(rule="majority", n=1)], pilot=2)
    with pytest.raises(ValueError, match="needs a verifier"):
        prospects(items, [Option(rule="best", n=2)], pilot=1)


def test_a_level_that_the_other_half_never_showed_takes_the_nearest() -> None:
    items = [item(["a"] * 6, "sure"), item([None] * 6, "mute")]
    found = prospects(items, [Option(rule="majority", n=n) for n in (2, 6)], pilot=2)
    (point,) = allocated_curve(items, found, {6: costs_at(items, 6)[0]}, splits=1)
    assert point.right == pytest.approx([1.0, 0.0])
    assert point.samples == pytest.approx([2.0, 2.0])  # more samples bring nothing to either, so the cheaper table is taken


def constant(values: list[float], questions: int = 6) -> np.ndarray:
    return np.tile(np.array(values), (questions, 1))


def test_reached_cost() -> None:
    assert reached_cost([1, 10, 100], [0.2, 0.4, 0.6], 0.5) == pytest.approx(10**1.5)  # straight over log cost
    assert reached_cost([1, 10, 100], [0.2, 0.4, 0.6], 0.6) == pytest.approx(100)
    assert reached_cost([2, 10], [0.5, 0.6], 0.3) == 2
    assert reached_cost([1, 10], [0.2, 0.3], 0.5) == math.inf
    assert reached_cost([1, 10, 100], [0.2, 0.6, 0.4], 0.4) == pytest.approx(10**0.5)  # the first time


def test_reach_gives_the_ratio_and_its_interval() -> None:
    curve = Track(right=constant([0.2, 0.4, 0.6]), cost=constant([1.0, 10.0, 100.0]))
    found = reach(curve, constant([0.5])[:, 0], constant([200.0])[:, 0], draws=200)
    assert found.ratio == pytest.approx(10**1.5 / 200)
    assert found.ci95 == pytest.approx((found.ratio, found.ratio))
    assert (found.never, found.at_start) == (0.0, False)
    never = reach(curve, constant([0.9])[:, 0], constant([200.0])[:, 0], draws=200)
    assert (never.ratio, never.cost, never.never, never.ci95[1]) == (None, None, 1.0, math.inf)
    assert never.best == pytest.approx(0.6)
    assert reach(curve, constant([0.1])[:, 0], constant([4.0])[:, 0], draws=200).at_start


def test_reach_is_paired_and_covers() -> None:
    """Accuracy of the small model at cost c is h + 0.1·log2 c, of the large one h + 0.25: they meet at 2^2.5 whatever h."""
    truth = 2**2.5 / 16
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        hard = rng.random(60) * 0.4
        cost = np.tile([1.0, 2.0, 4.0, 8.0, 16.0], (60, 1))
        right = (rng.random((60, 5)) < hard[:, None] + 0.1 * np.log2(cost)).astype(float)
        reference = (rng.random(60) < hard + 0.25).astype(float)
        found = reach(Track(right=right, cost=cost), reference, np.full(60, 16.0), draws=300, seed=trial)
        covered += found.ci95[0] <= truth <= found.ci95[1]
    assert covered / 200 >= 0.9


def test_overtaking() -> None:
    small = Track(right=constant([0.1, 0.5]), cost=constant([1.0, 100.0]))
    large = Track(right=constant([0.3, 0.35, 0.4]), cost=constant([4.0, 10.0, 400.0]))
    found = overtaking(small, large, draws=100)
    # 0.1 + 0.2·log10 c meets the second piece of the other: 0.35 + 0.05·log10(c/10)/log10(40)
    slope = 0.05 / math.log10(40)
    meeting = (0.35 - slope - 0.1) / (0.2 - slope)
    assert found.cost == pytest.approx(10**meeting)
    assert found.span == (4.0, 100.0)
    assert (found.above, found.above_share, found.never) == (True, 1.0, 0.0)
    flat = overtaking(Track(right=constant([0.1, 0.2]), cost=constant([1.0, 100.0])), large, draws=100)
    assert (flat.cost, flat.above, flat.never, flat.ci95) == (None, False, 1.0, None)
    apart = overtaking(Track(right=constant([0.1, 0.2]), cost=constant([1.0, 2.0])), large, draws=100)
    assert (apart.span, apart.cost) == (None, None)
    same = overtaking(small, small, draws=100)
    assert (same.cost, same.above) == (None, None)


def test_saving_at_equal_accuracy() -> None:
    uniform = Track(right=constant([0.2, 0.4, 0.6]), cost=constant([1.0, 10.0, 100.0]))
    found = saving(constant([0.5])[:, 0], constant([8.0])[:, 0], uniform, 2, draws=100)
    assert found.difference == pytest.approx(-0.1)
    assert found.cost_ratio == pytest.approx(0.08)
    assert found.fraction == pytest.approx(8 / 10**1.5)
    beyond = saving(constant([0.7])[:, 0], constant([50.0])[:, 0], uniform, 2, draws=100)
    assert beyond.fraction == pytest.approx(0.5)  # uniform never gets there: priced at its dearest


def test_impossible_tracks_are_refused() -> None:
    with pytest.raises(ValueError, match="not positive"):
        Track(right=constant([0.1]), cost=constant([0.0]))
    with pytest.raises(ValueError, match=r"\[questions, points\]"):
        Track(right=constant([0.1]), cost=constant([1.0, 2.0]))
