"""Win rates against numbers worked out by hand, by another optimiser, and against what was planted."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from posttrain.stats.pareto import pareto_front, undominated
from posttrain.stats.win_rate import Outcome, length_controlled, win_of, win_rate, win_rates_by_group


def outcomes(wins, lengths=None, items=None, said=None, groups=None):
    n = len(wins)
    return [
        Outcome(
            item=str(items[i] if items else i),
            win=wins[i],
            lengths=None if lengths is None else lengths[i],
            said=said[i] if said else (),
            group=groups[i] if groups else None,
        )
        for i in range(n)
    ]


def test_both_orders_are_averaged_and_ties_are_half():
    assert win_of(("first", "second")) == 1.0
    assert win_of(("second", "first")) == 0.0
    assert win_of(("first", "first")) == 0.5  # it prefers a place
    assert win_of(("tie", "tie")) == 0.5
    assert win_of(("first", "tie")) == 0.75
    assert win_of(("unparsed", "first")) == 0.25
    assert win_of(()) == 0.5  # equal texts, unasked


def test_by_hand():
    said = [("first", "second"), ("second", "second"), ("tie", "first"), ("unparsed", "unparsed")]
    made = outcomes([win_of(s) for s in said], [(4, 2), (1, 5), (3, 3), (2, 2)], said=said)
    found = win_rate(made)
    assert found["rate"] == (1 + 0.5 + 0.25 + 0.5) / 4
    assert (found["won"], found["tied"], found["lost"]) == (1, 2, 1)
    assert found["mean_lengths"] == [2.5, 3.0]
    assert found["flips"]["pairs"] == 3
    assert found["flips"]["flips"] == 2
    assert found["flips"]["second"] == 1
    assert found["flips"]["unparsed"] == 1
    assert found["first_share"] == 2 / 5  # first, second, second, second, first
    assert found["longer_wins"] == 1.0  # of the one decided comparison with different lengths


def test_p_is_mcnemars_for_wins_and_losses_and_counts_all_sign_flips_otherwise():
    found = win_rate(outcomes([1.0] * 9 + [0.0] * 2 + [0.5] * 5))
    assert found["p"] == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    mixed = np.array([0.5, 0.5, 0.25, -0.5, 0.25, 0.5, 0.5, 0.25, -0.25, 0.5])
    flips = [abs(np.dot(signs, mixed)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(flips) >= abs(mixed.sum()) - 1e-9)
    assert win_rate(outcomes(list(mixed + 0.5)))["p"] == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))


def test_items_weigh_the_same_and_their_comparisons_move_together():
    wins = [1.0] * 40 + [0.0] * 40
    once = win_rate(outcomes(wins))
    copied = win_rate(outcomes(wins * 10, items=list(range(80)) * 10))
    assert copied["rate"] == once["rate"]
    assert copied["ci95"] == pytest.approx(once["ci95"])  # ten copies tell no more than one
    assert copied["p"] == once["p"]
    assert win_rate(outcomes([1.0, 1.0, 1.0, 0.0], items=[0, 0, 0, 1]))["rate"] == 0.5


def test_the_interval_covers_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        chance = np.repeat(generator.beta(3, 2, 60), 3)  # three comparisons of an item hang together
        wins = (generator.random(180) < chance).astype(float)
        low, high = win_rate(outcomes(list(wins), items=list(np.repeat(np.arange(60), 3))), seed=trial)["ci95"]
        covered += low <= 0.6 <= high
    assert 182 <= covered <= 200


def by_scipy(wins, differences, weights):
    x = np.tanh(differences / differences.std())
    weights = weights * len(wins) / weights.sum()

    def loss(v):
        z = v[0] + v[1] * x
        return float(weights @ (np.logaddexp(0, z) - wins * z)) + 0.05 * v[1] ** 2

    return minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}).x


@pytest.mark.parametrize("effect", [0.0, 2.0, 40.0])  # 40: length alone decides, all but separated
def test_the_fit_is_that_of_another_optimiser(effect):
    generator = np.random.default_rng(0)
    d = generator.normal(20, 100, 80)
    wins = (generator.random(80) < 1 / (1 + np.exp(-0.4 - effect * np.tanh(d / 100)))).astype(float)
    wins[:10] = 0.5
    weights = generator.multinomial(80, np.full(80, 1 / 80), size=3).astype(float)
    rates, effects = length_controlled(wins, d, weights)
    for k in range(3):
        theta, phi = by_scipy(wins, d, weights[k])
        assert rates[k] == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-5)
        assert effects[k] == pytest.approx(phi, rel=1e-4, abs=1e-4)


def test_what_was_planted_is_found_and_a_pure_length_effect_is_taken_out():
    generator = np.random.default_rng(1)
    d = generator.normal(150, 100, 3000)  # the first side is longer, and as good
    x = np.tanh(d / d.std())
    wins = (generator.random(3000) < 1 / (1 + np.exp(-1.5 * x))).astype(float)
    found = win_rate(outcomes(list(wins), [(1000 + round(v), 1000) for v in d]))
    assert found["rate"] > 0.7
    low, high = found["controlled_ci95"]
    assert low < 0.5 < high
    assert found["length_effect"] == pytest.approx(1.5, abs=0.25)
    assert found["longer_wins"] > 0.7


def test_symmetry_identity_and_what_cannot_be_controlled():
    generator = np.random.default_rng(2)
    lengths = [(int(a), int(b)) for a, b in generator.integers(10, 90, (50, 2))]
    wins = [float(w) for w in generator.integers(0, 2, 50)]
    ours = win_rate(outcomes(wins, lengths))
    theirs = win_rate(outcomes([1 - w for w in wins], [(b, a) for a, b in lengths]))
    assert ours["controlled"] + theirs["controlled"] == pytest.approx(1)
    assert ours["length_effect"] == pytest.approx(theirs["length_effect"])
    itself = win_rate(outcomes([0.5] * 20, [(7, 7)] * 20))
    assert (itself["rate"], itself["controlled"], itself["p"]) == (0.5, 0.5, 1.0)
    assert itself["ci95"][0] < 0.5 < itself["ci95"][1]
    same = win_rate(outcomes([1.0, 0.0, 1.0, 1.0], [(9, 4)] * 4))
    assert same["controlled"] is None  # always longer by five: nothing tells what length does
    assert win_rate(outcomes([1.0, 0.0], None))["controlled"] is None
    won = win_rate(outcomes([1.0] * 10, [(k, 5) for k in range(10)]))
    assert won["controlled"] == 1.0
    assert won["controlled_ci95"] == won["ci95"]
    with pytest.raises(ValueError, match="no comparisons"):
        win_rate([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        win_rate(outcomes([1.5]))


def test_groups_have_their_own_rates_and_holm():
    wins = [1.0] * 18 + [0.0] * 2 + [1.0] * 5 + [0.0] * 5 + [1.0]
    found = win_rates_by_group(outcomes(wins, groups=["nurses"] * 20 + ["patients"] * 10 + [None]))
    assert list(found) == ["nurses", "patients"]
    assert (found["nurses"]["rate"], found["patients"]["rate"]) == (0.9, 0.5)
    assert found["nurses"]["p_holm"] == min(1.0, 2 * found["nurses"]["p"])
    assert found["patients"]["p_holm"] == 1.0


def test_undominated_points_by_hand_and_as_the_front_of_two():
    points = [(1.0, 5.0, 2.0), (2.0, 4.0, 2.0), (1.0, 4.0, 2.0), (2.0, 4.0, 2.0), (0.0, 0.0, 9.0)]
    assert undominated(points) == [0, 1, 3, 4]
    generator = np.random.default_rng(5)
    two = [tuple(map(float, p)) for p in generator.integers(0, 6, (40, 2))]
    assert sorted(pareto_front([(-a, b) for a, b in two])) == undominated(two)
