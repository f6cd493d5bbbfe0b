"""Expectations over subsets: against enumeration of all subsets and orders, closed forms of simulated policies, coverage."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.stats.curves import (
    adaptive_curve,
    best_of_k,
    best_of_prefixes,
    costs_at,
    majority_curve,
    ranked_curve,
    single_curve,
    verified_curve,
    vote_prefixes,
    weighted_curve,
)
from posttrain.stats.passk import pass_at_k
from posttrain.stats.pool import Item, Scores, sample_orders
from posttrain.stats.resample import mean_interval
from posttrain.stats.stopping import ahead, beta_confidence, replay

KEYS = ["a", "b", "c", None]
SAMPLES = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=6)


def item(keys: Sequence[str | None], right_key: str = "a", *, name: str = "q", prompt: float = 10.0) -> Item:
    tokens = tuple(float(3 + 2 * i) for i in range(len(keys)))
    return Item(
        id=name,
        keys=tuple(keys),
        right=tuple(float(key == right_key) for key in keys),
        tokens=tokens,
        flops=tuple(100 * count for count in tokens),
        prompt_tokens=prompt,
        prompt_flops=7.0,
    )


def scores(values: Sequence[float | None]) -> Scores:
    return Scores(values=tuple(values), tokens=(2.0,) * len(values), flops=(5.0,) * len(values))


def chosen(indices: Sequence[int], keys: Sequence[str | None], values: Sequence[float | None]) -> float:
    """Best-of-n of these samples, written as the strategy's rule: equals share."""
    pool = [i for i in indices if keys[i] is not None] or list(indices)
    best = max(-math.inf if values[i] is None else values[i] for i in pool) if keys[pool[0]] is not None else None
    top = [i for i in pool if best is None or (-math.inf if values[i] is None else values[i]) == best]
    return sum(keys[i] == "a" for i in top) / len(top)


def voted(indices: Sequence[int], keys: Sequence[str | None], weights: Sequence[float]) -> float:
    sums: Counter[str] = Counter()
    votes: Counter[str] = Counter()
    for i in indices:
        if keys[i] is not None:
            sums[keys[i]] += weights[i]
            votes[keys[i]] += 1
    if not votes:
        return 0.0
    best = max((sums[key], votes[key]) for key in votes)
    top = [key for key in votes if (sums[key], votes[key]) == best]
    return ("a" in top) / len(top)


@settings(max_examples=150, deadline=None)
@given(SAMPLES, st.data())
def test_best_of_k_equals_enumeration(pool: list[tuple[str | None, float | None]], data: st.DataObject) -> None:
    keys, values = [key for key, _ in pool], [value for _, value in pool]
    k = data.draw(st.integers(1, len(pool)))
    subsets = list(itertools.combinations(range(len(pool)), k))
    expected = sum(chosen(subset, keys, values) for subset in subsets) / len(subsets)
    one = item(keys)
    assert best_of_k(one.keys, one.right, values, k) == pytest.approx(expected, abs=1e-12)
    orders = sample_orders(one.n, k, 10**6)
    assert best_of_prefixes(one, values, orders, [k]).mean() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(SAMPLES, st.data())
def test_votes_equal_enumeration(pool: list[tuple[str | None, float | None]], data: st.DataObject) -> None:
    keys, weights = [key for key, _ in pool], [value or 0.0 for _, value in pool]
    one = item(keys)
    sizes = list(range(1, one.n + 1))
    orders = sample_orders(one.n, one.n, 10**6)
    plain, weighted = (vote_prefixes(one, w, orders, sizes).mean(axis=0) for w in (None, weights))
    exact = majority_curve([one], sizes)
    drawn = weighted_curve([one], sizes, {"q": scores(weights)})
    for at, k in enumerate(sizes):
        subsets = list(itertools.combinations(range(one.n), k))
        by_count = sum(voted(subset, keys, [1.0] * one.n) for subset in subsets) / len(subsets)
        by_weight = sum(voted(subset, keys, weights) for subset in subsets) / len(subsets)
        assert plain[at] == pytest.approx(by_count, abs=1e-12)
        assert exact[at].right[0] == pytest.approx(by_count, abs=1e-12)
        assert weighted[at] == pytest.approx(by_weight, abs=1e-12)
        assert drawn[at].right[0] == pytest.approx(by_weight, abs=1e-12)
        assert drawn[at].monte_carlo_error == 0.0


def test_best_of_k_by_the_grades_is_pass_at_k() -> None:
    for correct in range(9):
        one = item(["a"] * correct + ["b"] * (8 - correct))
        for k in range(1, 9):
            (point,) = ranked_curve([one], [k])
            assert point.right[0] == pytest.approx(pass_at_k(8, correct, k), abs=1e-12)


def adaptive_by_hand(order: Sequence[int], keys: Sequence[str | None], confidence: float, wave: int) -> tuple[float, int]:
    votes: Counter[str] = Counter()
    for used, index in enumerate(order, 1):
        if keys[index] is not None:
            votes[keys[index]] += 1
        first, second = ([count for _, count in votes.most_common(2)] + [0, 0])[:2]
        # P(p > 1/2) for Beta(first + 1, second + 1), as a binomial tail: fewer than first + 1 heads in first + second + 1
        total = first + second + 1
        tail = sum(math.comb(total, j) for j in range(first + 1)) / 2**total
        if used == len(order) or (used % wave == 0 and first > 0 and tail >= confidence):
            top = [key for key, count in votes.items() if count == first and first]
            return (("a" in top) / len(top) if top else 0.0), used
    raise AssertionError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6), st.sampled_from([0.6, 0.75, 0.9, 0.95]), st.integers(1, 4))
def test_adaptive_consistency_equals_enumeration_of_all_orders(keys: list[str | None], confidence: float, wave: int) -> None:
    one = item(keys)
    for most in range(1, one.n + 1):
        orders = list(itertools.permutations(range(one.n), most))
        told = [adaptive_by_hand(order, keys, confidence, wave) for order in orders]
        tokens = [sum(one.tokens[i] for i in order[:used]) for order, (_, used) in zip(orders, told, strict=True)]
        (point,) = adaptive_curve([one], [most], threshold=confidence, wave=wave)
        assert point.right[0] == pytest.approx(sum(value for value, _ in told) / len(told), abs=1e-12)
        assert point.samples[0] == pytest.approx(sum(used for _, used in told) / len(told))
        calls = sum(-(-used // wave) for _, used in told) / len(told)  # each reads the prompt of 10 tokens
        assert point.tokens[0] == pytest.approx(10 * calls + sum(tokens) / len(tokens))
        assert point.flops[0] == pytest.approx(7 * calls + 100 * sum(tokens) / len(tokens))


def verified_by_hand(
    order: tuple[int, ...], keys: list[str | None], values: list[float | None], wave: int
) -> tuple[float, int]:
    """Return (score, samples used) of drawing wave by wave until a readable sample is accepted; answer 'a' is right."""
    for used in range(1, len(order) + 1):
        if used % wave and used < len(order):
            continue
        for index in order[:used]:
            if keys[index] is not None and values[index] is not None and values[index] >= 0.5:
                return float(keys[index] == "a"), used
    readable = [index for index in order if keys[index] is not None]
    if not readable:
        return 0.0, len(order)
    known = [values[index] for index in readable if values[index] is not None]
    best = [index for index in readable if values[index] == max(known)] if known else readable
    return sum(keys[index] == "a" for index in best) / len(best), len(order)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_verified_search_equals_enumeration_of_all_orders(pool: list[tuple[str | None, float | None]], wave: int) -> None:
    keys, values = [key for key, _ in pool], [value for _, value in pool]
    one = item(keys)
    scores = {one.id: Scores(values=tuple(values), tokens=(3.0,) * one.n, flops=(1.0,) * one.n)}
    for most in range(1, one.n + 1):
        orders = list(itertools.permutations(range(one.n), most))
        told = [verified_by_hand(order, keys, values, wave) for order in orders]
        tokens = [sum(one.tokens[i] + 3 for i in order[:used]) for order, (_, used) in zip(orders, told, strict=True)]
        (point,) = verified_curve([one], [most], scores, accept=0.5, wave=wave)
        assert point.right[0] == pytest.approx(sum(value for value, _ in told) / len(told), abs=1e-12)
        assert point.samples[0] == pytest.approx(sum(used for _, used in told) / len(told))
        calls = sum(-(-used // wave) for _, used in told) / len(told)
        assert point.tokens[0] == pytest.approx(10 * calls + sum(tokens) / len(tokens))


def test_the_beta_rule() -> None:
    assert [beta_confidence(v, 0) for v in (1, 2, 3, 4)] == pytest.approx([0.75, 0.875, 0.9375, 0.96875])
    assert beta_confidence(5, 5) == pytest.approx(0.5)
    assert [ahead(v, 0) for v in range(6)] == [False, False, False, False, True, True]
    assert beta_confidence(10**6, 10) == 1.0
    with pytest.raises(ValueError, match="larger one first"):
        beta_confidence(1, 2)
    # four samples without an answer are no agreement
    order = np.arange(6)[None, :]
    assert [part.tolist() for part in replay([None] * 6, [0.0] * 6, order)] == [[0.0], [6]]
    assert replay(["a", "a", None, "a", "a", "b"], [1, 1, 0, 1, 1, 0], order)[1].tolist() == [5]
    # what a wave draws past certainty is paid
    assert replay(["a"] * 6, [1.0] * 6, order, wave=3)[1].tolist() == [6]
    assert replay(["a"] * 9, [1.0] * 9, np.arange(9)[None, :], wave=3)[1].tolist() == [6]


def test_costs_charge_the_prompt_once_and_the_verifier_per_sample() -> None:
    one = item(["a", "b", "a", None])  # samples of 3, 5, 7, 9 tokens
    subsets = list(itertools.combinations(range(4), 2))
    tokens, flops = costs_at([one], 2)
    assert tokens[0] == pytest.approx(sum(10 + sum(one.tokens[i] for i in subset) for subset in subsets) / 6)
    assert flops[0] == pytest.approx(7 + 2 * 600)
    tokens, flops = costs_at([one], 2, {"q": scores([0.1] * 4)})
    assert (tokens[0], flops[0]) == (pytest.approx(10 + 12 + 4), pytest.approx(7 + 1200 + 10))
    assert costs_at([one], 4)[0][0] == 10 + sum(one.tokens)


def policy(rng: random.Random, chance: float, wrong: Sequence[float]) -> str:
    """Answer a with this chance, else one of the wrong answers by their shares."""
    if rng.random() < chance:
        return "a"
    return rng.choices([f"w{i}" for i in range(len(wrong))], wrong)[0]


def majority_chance(n: int, chance: float) -> float:
    """P(right has the majority of n) when all wrong answers agree; a tie is half."""
    terms = [math.comb(n, j) * chance**j * (1 - chance) ** (n - j) for j in range(n + 1)]
    return sum(term * (1.0 if 2 * j > n else 0.5 if 2 * j == n else 0.0) for j, term in enumerate(terms))


def adaptive_chance(n: int, chance: float) -> tuple[float, float]:
    """P(right) and expected samples of the Beta rule with two answers, by dynamic programming over the counts."""
    states, right, used = {(0, 0): 1.0}, 0.0, 0.0
    for drawn in range(1, n + 1):
        grown: Counter[tuple[int, int]] = Counter()
        for (a, b), mass in states.items():
            grown[a + 1, b] += mass * chance
            grown[a, b + 1] += mass * (1 - chance)
        states = {}
        for (a, b), mass in grown.items():
            total = a + b + 1
            tail = sum(math.comb(total, j) for j in range(max(a, b) + 1)) / 2**total
            if tail >= 0.95 or drawn == n:
                right += mass * (1.0 if a > b else 0.5 if a == b else 0.0)
                used += mass * drawn
            else:
                states[a, b] = mass
    return right, used


def test_curves_of_a_simulated_policy_are_its_closed_forms() -> None:
    rng = random.Random(5)
    chances = [(index + 1) / 7 for index in range(6)] * 60
    items = [item([policy(rng, chance, [1.0]) for _ in range(24)], name=f"q{i}") for i, chance in enumerate(chances)]
    quality = {one.id: scores([rng.gauss(1.5 * right, 1.0) for right in one.right]) for one in items}
    sizes = [1, 4, 9, 12]
    curves = {
        "majority": majority_curve(items, sizes),
        "pass": ranked_curve(items, sizes),
        "best": ranked_curve(items, sizes, quality),
        "adaptive": adaptive_curve(items, sizes, threshold=0.95, wave=1, draws=400),
    }
    for at, k in enumerate(sizes):
        expected = {
            "majority": [majority_chance(k, chance) for chance in chances],
            "pass": [1 - (1 - chance) ** k for chance in chances],
            "best": [best_chance(k, chance) for chance in chances[:6]] * 60,
            "adaptive": [adaptive_chance(k, chance)[0] for chance in chances],
        }
        for name, wanted in expected.items():
            off = curves[name][at].right - np.array(wanted)
            assert abs(off.mean()) < 3 * off.std(ddof=1) / math.sqrt(len(off)) + 1e-9, (name, k)
        off = curves["adaptive"][at].samples - np.array([adaptive_chance(k, chance)[1] for chance in chances])
        assert abs(off.mean()) < 3 * off.std(ddof=1) / math.sqrt(len(off)) + 1e-9, k
    assert single_curve(items)[0].right.mean() == pytest.approx(curves["majority"][0].right.mean())


def best_chance(k: int, chance: float) -> float:
    """P(the best of k is right) with scores N(1.5, 1) for right and N(0, 1) for wrong samples: E over the maximum."""
    grid = np.linspace(-8, 10, 4001)
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    density = np.exp(-0.5 * (grid - 1.5) ** 2) / math.sqrt(2 * math.pi)
    below = chance * cdf(grid - 1.5) + (1 - chance) * cdf(grid)
    return float(np.trapezoid(k * chance * density * below ** (k - 1), grid))


def test_monte_carlo_error_is_far_below_the_interval_and_honest() -> None:
    rng = random.Random(1)
    items = [item([policy(rng, rng.random(), [3, 2, 1]) for _ in range(16)], name=f"q{i}") for i in range(40)]
    weights = {one.id: scores([rng.random() for _ in one.keys]) for one in items}
    (point,) = weighted_curve(items, [8], weights)
    low, high = mean_interval(point.right)
    assert 0 < point.monte_carlo_error < 0.05 * (high - low)
    (many,) = weighted_curve(items, [8], weights, draws=20000, seed=9)
    assert abs(point.right.mean() - many.right.mean()) < 4 * point.monte_carlo_error
    repeats = [weighted_curve(items[:10], [8], weights, draws=150, seed=seed)[0] for seed in range(60)]
    spread = np.std([repeat.right.mean() for repeat in repeats], ddof=1)
    assert 0.75 < spread / np.mean([repeat.monte_carlo_error for repeat in repeats]) < 1.3


def test_intervals_over_questions_cover() -> None:
    """Of 300 pools of 50 questions × 6 samples, the 95% interval of majority@3 holds the truth about 95% of the time."""
    rng = random.Random(11)
    truth = sum(majority_chance(3, (index + 0.5) / 200) for index in range(200)) / 200
    covered = 0
    for trial in range(300):
        items = []
        for index in range(50):
            chance = rng.randrange(200) / 200 + 0.0025
            items.append(item([policy(rng, chance, [1.0]) for _ in range(6)], name=f"{trial}-{index}"))
        low, high = mean_interval(majority_curve(items, [3])[0].right, draws=500, seed=trial)
        covered += low <= truth <= high
    assert 0.905 <= covered / 300 <= 0.985


def test_an_interval_does_not_collapse_when_all_questions_agree() -> None:
    assert mean_interval(np.ones(20))[0] == pytest.approx(0.839, abs=1e-3)  # Wilson, 20 of 20
    assert mean_interval(np.full(20, 0.5)) == pytest.approx((0.299, 0.701), abs=1e-3)


def test_bad_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each"):
        Item(id="x", keys=("a",), right=(1.0, 0.0), tokens=(1.0,), flops=(1.0,))
    with pytest.raises(ValueError, match="between 1 and 2 samples"):
        best_of_k(["a", "b"], [1, 0], [0, 0], 3)
    with pytest.raises(ValueError, match="between 1 and 3"):
        sample_orders(3, 4, 10)
    with pytest.raises(ValueError, match="not negative"):
        vote_prefixes(item(["a"]), [-1.0], sample_orders(1, 1, 10), [1])
    with pytest.raises(ValueError, match="at least one sample"):
        replay(["a"], [1.0], sample_orders(1, 1, 10), wave=0)
