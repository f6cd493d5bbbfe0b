"""Intervals, paired comparison, pass@k and the Pareto front against independent values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from posttrain.stats.intervals import bootstrap, wilson
from posttrain.stats.paired import compare, holm, mcnemar, tango
from posttrain.stats.pareto import break_even, pareto_front
from posttrain.stats.passk import mean_pass_at_k, pass_at_k


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_wilson_equals_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = scipy_stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_published() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_ends() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 7)[1] == 1.0
    assert wilson(0, 7)[0] == 0.0
    with pytest.raises(ValueError, match="8 successes of 7"):
        wilson(8, 7)


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400).tolist()
    low, high = bootstrap(values, draws=4000)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.04)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_repeats_of_an_item_are_not_independent() -> None:
    """Sixteen equal copies of each of 20 items say no more than the items themselves."""
    items = [0.0] * 8 + [1.0] * 12
    copied = [value for value in items for _ in range(16)]
    clusters = [index for index in range(20) for _ in range(16)]
    assert bootstrap(copied, clusters=clusters) == bootstrap(items)
    naive = bootstrap(copied)
    assert naive[1] - naive[0] < 0.35 * (bootstrap(items)[1] - bootstrap(items)[0])


def test_clusters_count_once_whatever_their_size() -> None:
    low, high = bootstrap([1.0] * 99 + [0.0], clusters=["a"] * 99 + ["b"])
    assert (low, high) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_binomial_test(gained: int, lost: int) -> None:
    expected = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(3, 1) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(2, 2) == 1.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 0)


def score_statistic(gained: int, lost: int, n: int, delta: float) -> float:
    """The paired score statistic with the restricted likelihood maximised on a fine grid: no closed form."""
    low, high = max(0.0, -delta), min(1.0, (1.0 - delta) / 2)
    q = np.linspace(low, high, 400_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = np.zeros_like(q)
        for count, probability in ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta)):
            if count:
                likelihood = likelihood + count * np.log(probability)
    best = float(q[np.nanargmax(likelihood)])
    return (gained - lost - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta)))


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(12, 4, 100), (4, 12, 100), (1, 0, 44), (0, 9, 30), (30, 25, 60), (3, 3, 500)]
)
def test_tango_inverts_the_score_test(gained: int, lost: int, n: int) -> None:
    low, high = tango(gained, lost, n)
    assert score_statistic(gained, lost, n, low) == pytest.approx(1.959964, abs=2e-3)
    assert score_statistic(gained, lost, n, high) == pytest.approx(-1.959964, abs=2e-3)


def test_tango_ends() -> None:
    z2 = 1.959963984540054**2
    assert tango(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert tango(9, 0, 9) == pytest.approx(((9 - z2) / (9 + z2), 1.0))
    assert tango(0, 9, 9) == pytest.approx((-1.0, -(9 - z2) / (9 + z2)))
    assert tango(0, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="of 5 examples"):
        tango(3, 3, 5)


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_tango_properties(n: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    low, high = tango(gained, lost, n)
    assert -1.0 <= low <= (gained - lost) / n <= high <= 1.0
    mirrored = tango(lost, gained, n)
    assert (-high, -low) == pytest.approx(mirrored, abs=1e-8)
    if gained != lost:  # at a difference of zero it is McNemar's test without continuity correction
        excludes_zero = low > 0 or high < 0
        assert excludes_zero == ((gained - lost) ** 2 / (gained + lost) > 1.959963984540054**2)


def test_tango_covers() -> None:
    generator = np.random.default_rng(1)
    draws = generator.multinomial(80, [0.15, 0.05, 0.8], size=1500)
    covered = [low <= 0.10 <= high for low, high in (tango(int(g), int(lost), 80) for g, lost, _ in draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_paired_comparison() -> None:
    found = compare([1, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0])
    assert (found.n, found.gained, found.lost, found.difference) == (6, 3, 1, pytest.approx(2 / 6))
    assert found.p == pytest.approx(10 / 16)
    assert found.ci95 == tango(3, 1, 6)
    with pytest.raises(ValueError, match="the same examples"):
        compare([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        compare([0.5], [1.0])


def test_pairing_finds_what_an_unpaired_test_misses() -> None:
    reference = [1.0] * 50 + [0.0] * 50
    better = [1.0] * 60 + [0.0] * 40
    assert compare(better, reference).p == pytest.approx(2 / 2**10)
    assert scipy_stats.fisher_exact([[60, 40], [50, 50]]).pvalue > 0.1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    for level in (0.05, 0.2):
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


@settings(deadline=None)
@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_mean_over_subsets(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [index < correct for index in range(n)]
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_pass_at_k_published() -> None:
    assert pass_at_k(8, 2, 4) == pytest.approx(11 / 14)  # the plug-in 1 − (1 − 2/8)⁴ gives 0.684
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(10_000, 9_000, 100) == pytest.approx(1.0)
    for arguments, words in (((3, 1, 4), "at least 4 samples"), ((3, 1, 0), "at least 1"), ((3, 4, 1), "4 right of 3")):
        with pytest.raises(ValueError, match=words):
            pass_at_k(*arguments)


def test_mean_pass_at_k_counts_each_item_once() -> None:
    mean, (low, high) = mean_pass_at_k([(2, 1), (8, 2), (8, 0)], 2)
    assert mean == pytest.approx((1.0 + (1 - 15 / 28) + 0.0) / 3)
    assert low < mean < high
    with pytest.raises(ValueError, match="no items"):
        mean_pass_at_k([], 1)


def test_pareto_by_hand() -> None:
    assert pareto_front([(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (1, 0.3)]) == [0, 2]
    assert pareto_front([(1, 0.5), (1, 0.5)]) == [0, 1]
    assert pareto_front([]) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=9))
def test_pareto_by_definition(points: list[tuple[float, float]]) -> None:
    beaten = {
        i
        for i, (cost, accuracy) in enumerate(points)
        if any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
    }
    front = pareto_front(points)
    assert set(front) == set(range(len(points))) - beaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_break_even_is_the_first_query_that_pays(fixed: int, each: int, other_fixed: int, other_each: int) -> None:
    found = break_even(fixed, each, other_fixed, other_each)
    tried = (x for x in range(100) if fixed + x * each <= other_fixed + x * other_each)
    assert (math.ceil(found) if math.isfinite(found) else None) == next(tried, None)
