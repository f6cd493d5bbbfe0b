"""Spread over variants and means over tasks, against numbers worked out another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.stats.paired import mcnemar
from posttrain.stats.spread import macro, spread


def test_numbers_of_a_small_table() -> None:
    found = spread([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    assert (found.variants, found.n) == (3, 4)
    assert (found.mean, found.best, found.worst, found.spread) == (0.5, 0.75, 0.25, 0.5)


@pytest.mark.parametrize(("gained", "lost", "ties"), [(8, 1, 30), (3, 2, 10), (0, 0, 12), (12, 12, 6)])
def test_for_two_variants_p_is_mcnemar_s(gained: int, lost: int, ties: int) -> None:
    first = [1.0] * gained + [0.0] * lost + [1.0] * ties
    second = [0.0] * gained + [1.0] * lost + [1.0] * ties
    draws = 4000
    expected = mcnemar(gained, lost)
    error = 3 * math.sqrt(max(expected * (1 - expected), 1e-9) / draws) + 1 / draws
    assert abs(spread([first, second], draws=draws).p - expected) < error


def test_noise_and_interval_are_those_of_enumeration() -> None:
    table = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    orders = [list(itertools.permutations(table[:, i])) for i in range(4)]
    nulls = [np.array(columns).T.mean(1) for columns in itertools.product(*orders)]
    exact = [float(accuracy.max() - accuracy.min()) for accuracy in nulls]
    found = spread(table.tolist(), draws=20000)
    assert found.noise == pytest.approx(np.mean(exact), abs=3 * np.std(exact) / math.sqrt(20000))
    observed = table.mean(1).max() - table.mean(1).min()
    assert found.p == pytest.approx(np.mean([e >= observed - 1e-9 for e in exact]), abs=0.015)
    drawn = [table[:, list(places)].mean(1) for places in itertools.product(range(4), repeat=4)]
    assert found.worst_ci95 == pytest.approx(tuple(np.quantile([d.min() for d in drawn], [0.025, 0.975])))
    assert found.spread_ci95 == pytest.approx(tuple(np.quantile([d.max() - d.min() for d in drawn], [0.025, 0.975])))


def test_equal_variants_have_no_spread() -> None:
    found = spread([[1, 0, 1]] * 4)
    assert (found.spread, found.spread_ci95, found.noise, found.p) == (0, (0, 0), 0, 1)


def test_variants_that_do_not_matter_are_not_found() -> None:
    generator = np.random.default_rng(0)
    small = [spread((generator.random((5, 60)) < 0.4).astype(float).tolist(), draws=300).p < 0.05 for _ in range(100)]
    assert sum(small) <= 12  # 5 expected; above 12 has probability 0.001


def test_a_macro_mean_counts_every_task_the_same() -> None:
    mean, (low, high) = macro([[1.0] * 10, [0.0, 1.0] * 50], draws=8000)
    assert mean == 0.75
    half = 1.96 * 0.5 * math.sqrt(0.25 / 100)  # only the second task varies, at half weight
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.012)


def test_bad_input() -> None:
    for scores in ([], [[]], [[1.0], [1.0, 0.0]]):
        with pytest.raises(ValueError, match="same examples"):
            spread(scores)
    with pytest.raises(ValueError, match="none of them empty"):
        macro([[1.0], []])
