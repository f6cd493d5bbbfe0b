"""Agreement coefficients against published values, hand computation and brute force."""

import itertools
import random

import pytest

from posttrain.stats.agreement import agreement_of, cohen_kappa, fleiss_kappa, krippendorff_alpha

# Krippendorff 2011, section "any number of observers": four observers, twelve units, "." is missing
KRIPPENDORFF = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
# Fleiss 1971's layout in a worked example that is widely reprinted: 10 subjects, 14 raters, 5 categories, kappa 0.210
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def units(rows):
    table = [[None if cell == "." else int(cell) for cell in row.split()] for row in rows]
    return [list(column) for column in zip(*table, strict=True)]


def test_krippendorffs_own_example_at_three_levels():
    found = units(KRIPPENDORFF)
    assert krippendorff_alpha(found) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(found, level="ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(found, level="interval") == pytest.approx(0.849, abs=5e-4)


def test_fleiss_own_example():
    rows = [[c for c, n in enumerate(counts) for _ in range(n)] for counts in FLEISS]
    assert fleiss_kappa(rows) == pytest.approx(0.210, abs=5e-4)


def test_cohen_by_hand():
    """20 both yes, 5 and 10 split, 15 both no: p_o = 0.7, p_e = 0.5, kappa 0.4."""
    first = ["y"] * 20 + ["y"] * 5 + ["n"] * 10 + ["n"] * 15
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([1, 1], [1, 1]) is None


def test_alpha_by_brute_force_over_all_pairs_of_ratings():
    draw = random.Random(3)
    for _ in range(20):
        found = [[draw.choice([0, 1, 2, None]) for _ in range(4)] for _ in range(9)]
        kept = [[v for v in u if v is not None] for u in found if sum(v is not None for v in u) > 1]
        flat = [v for u in kept for v in u]
        within = sum((a != b) / (len(u) - 1) for u in kept for a, b in itertools.permutations(u, 2)) / len(flat)
        overall = sum(a != b for a, b in itertools.permutations(flat, 2)) / (len(flat) * (len(flat) - 1))
        assert krippendorff_alpha(found) == pytest.approx(1 - within / overall)


def test_of_two_annotators_alpha_is_near_cohen_and_scotts_pi_corrected():
    draw = random.Random(5)
    first = [draw.choice("ab") for _ in range(4000)]
    second = [x if draw.random() < 0.8 else draw.choice("ab") for x in first]
    pairs = [list(pair) for pair in zip(first, second, strict=True)]
    assert krippendorff_alpha(pairs) == pytest.approx(cohen_kappa(first, second), abs=2e-3)
    assert fleiss_kappa(pairs) == pytest.approx(cohen_kappa(first, second), abs=2e-3)


def test_summary_of_rows_with_missing_annotators():
    assert agreement_of([[1], [None, 2]]) is None
    told = agreement_of([[1, 1, 1], [2, 2, None], [1, 2, 1]])
    assert told["units"] == 3
    assert told["all_agree"] == pytest.approx(2 / 3)
    assert told["fleiss_kappa"] is None
    assert told["krippendorff_alpha"] == pytest.approx(krippendorff_alpha([[1, 1, 1], [2, 2], [1, 2, 1]]))
    with pytest.raises(ValueError, match="no unit has two ratings"):
        krippendorff_alpha([[1], [2]])
    with pytest.raises(ValueError, match="the same number of ratings"):
        fleiss_kappa([[1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="must have judged the same units"):
        cohen_kappa([1], [1, 2])
