"""Votes: who votes, who wins a tie, and the exact expectation against enumeration of every subset."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.stats.vote import expected_majority, majority, subset_mean, tally, weighted

POOLS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=9)


def test_majority_by_hand() -> None:
    assert majority(["1", "2", "2", "3"]) == "2"
    assert majority(["1"]) == "1"
    assert tally(["b", None, "a", "b"]) == {"b": 2.0, "a": 1.0}


def test_unparsed_answers_do_not_vote() -> None:
    assert majority([None, None, None, "7"]) == "7"
    assert weighted([None, None, "7"], [9.0, 9.0, 0.0]) == "7"
    assert majority([None, None]) is None
    assert weighted([None], [1.0]) is None
    assert majority([]) is None


def test_ties_are_defined() -> None:
    assert majority(["b", "a", "a", "b"]) == "b"  # first by sample index
    assert majority(["b", "a", "a", "b"], [0.1, 0.4, 0.1, 0.1]) == "a"  # highest summed score
    assert majority(["b", "b", "a"], [0.0, 0.0, 9.0]) == "b"  # a score decides nothing but ties
    assert weighted(["a", "b", "b"], [1.0, 0.5, 0.5]) == "b"  # more votes
    assert weighted(["a", "b"], [1.0, 1.0]) == "a"


def test_weights_are_summed_not_averaged() -> None:
    assert weighted(["a", "b", "b", "b"], [0.9, 0.4, 0.4, 0.4]) == "b"
    assert weighted(["a", "b", "b"], [0.9, 0.4, 0.4]) == "a"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        weighted(["a", "b"], [1.0, weight])


def enumerated(pool: list[tuple[str | None, float]], k: int) -> float:
    worth: dict[str, list[float]] = {}
    for key, score in pool:
        if key is not None:
            worth.setdefault(key, []).append(score)
    values = []
    for subset in itertools.combinations(pool, k):
        votes = Counter(key for key, _ in subset if key is not None)
        top = [key for key, count in votes.items() if count == max(votes.values())]
        values.append(sum(sum(worth[key]) / len(worth[key]) for key in top) / len(top) if top else 0.0)
    return sum(values) / len(values)


@settings(max_examples=150, deadline=None)
@given(POOLS, st.data())
def test_expected_majority_equals_enumeration(pool: list[tuple[str | None, float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(pool)))
    keys, scores = [key for key, _ in pool], [score for _, score in pool]
    assert expected_majority(keys, scores, k) == pytest.approx(enumerated(pool, k), abs=1e-12)


def test_expected_majority_known_values() -> None:
    assert expected_majority([None, None], [0.0, 0.0], 2) == 0.0
    assert expected_majority(["x", "x", "y", "y"], [1, 1, 0, 0], 4) == 0.5  # a tie is shared, not won by who came first
    assert expected_majority(["x", "y", "y"], [1, 0, 0], 1) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="between 1 and 2"):
        expected_majority(["x", "y"], [1, 0], 3)


def test_expected_majority_of_a_large_pool() -> None:
    """A pool of 256 with p = 0.6 in two answers: the hypergeometric tail, summed here directly."""
    from scipy.stats import hypergeom

    keys = ["x"] * 154 + ["y"] * 102
    expected = hypergeom(256, 154, 33).sf(16)
    assert expected_majority(keys, [1.0] * 154 + [0.0] * 102, 33) == pytest.approx(expected, rel=1e-9)
    many = [str(index % 70) for index in range(256)]  # 46 answers with four votes, 24 with three
    four, three = (expected_majority(many, [float(key == name) for key in many], 64) for name in ("0", "69"))
    assert four > three
    assert 46 * four + 24 * three == pytest.approx(1.0, rel=1e-12)  # somebody always wins


def test_subset_mean_exact_and_drawn() -> None:
    values = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8, 0.6, 0.4, 1.0]

    def best(subset: tuple[int, ...]) -> float:
        return max(values[index] for index in subset)

    exact = subset_mean(10, 3, best)
    assert exact == pytest.approx(sum(max(s) for s in itertools.combinations(values, 3)) / 120)
    drawn = subset_mean(10, 3, best, exact_up_to=1)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert drawn == subset_mean(10, 3, best, exact_up_to=1)
    with pytest.raises(ValueError, match="between 1 and 10"):
        subset_mean(10, 11, best)
