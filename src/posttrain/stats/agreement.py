"""How far annotators agree beyond chance: Cohen's κ for two, Fleiss' κ for a fixed number, Krippendorff's α for any.

A unit is one item judged; its ratings are any values that can be compared, None where an annotator did not judge it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any, Literal

__all__ = ["agreement_of", "cohen_kappa", "fleiss_kappa", "krippendorff_alpha"]

Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Return κ = (p_o − p_e) / (1 − p_e) of two annotators of the same units; None where both always say one thing.

    p_o is the share of units they agree on, p_e = Σ_c p_c q_c with each one's own shares. Source: Cohen 1960, "A coefficient
    of agreement for nominal scales", Educational and Psychological Measurement 20(1).
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} ratings: two annotators must have judged the same units")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    p, q = Counter(first), Counter(second)
    chance = sum(p[c] * q[c] for c in p) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def fleiss_kappa(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return κ = (P̄ − P_e) / (1 − P_e), every unit with the same number m of ratings; None where all say one thing.

    P̄ is the mean over units of Σ_c n_c (n_c − 1) / (m (m − 1)), P_e = Σ_c p_c² of all ratings. Source: Fleiss 1971,
    "Measuring nominal scale agreement among many raters", Psychological Bulletin 76(5).
    """
    sizes = {len(unit) for unit in units}
    if len(sizes) != 1 or (m := sizes.pop()) < 2:
        raise ValueError("every unit needs the same number of ratings, two or more")
    counts = [Counter(unit) for unit in units]
    observed = sum(sum(n * (n - 1) for n in count.values()) / (m * (m - 1)) for count in counts) / len(units)
    total = sum(counts, Counter[Hashable]())
    chance = sum((n / (m * len(units))) ** 2 for n in total.values())
    return None if chance == 1 else (observed - chance) / (1 - chance)


def krippendorff_alpha(units: Sequence[Sequence[Any]], *, level: Level = "nominal") -> float | None:
    """Return α = 1 − D_o / D_e, with any number of ratings and missing ones (None); None where all say one thing.

    D_o is the mean difference δ² within units, over pairs of ratings (each unit with m ratings weighs its pairs by
    1 / (m − 1)), D_e that of all ratings paired with one another. δ² is 0 or 1 (`nominal`), the squared difference
    (`interval`), or with ranks g of n_g ratings each (Σ_{g=c..k} n_g − (n_c + n_k) / 2)² (`ordinal`). Source: Krippendorff
    2011, "Computing Krippendorff's alpha-reliability". Raises `ValueError` when no unit has two ratings.
    """
    known = [[value for value in unit if value is not None] for unit in units]
    known = [unit for unit in known if len(unit) > 1]
    if not known:
        raise ValueError("no unit has two ratings")
    totals = Counter(value for unit in known for value in unit)
    n = sum(totals.values())
    delta = _difference(level, totals)
    observed = sum(
        2 * delta(a, b) / (len(unit) - 1) for unit in known for a, b in combinations(unit, 2)
    ) / n  # fmt: skip
    expected = sum(2 * totals[a] * totals[b] * delta(a, b) for a, b in combinations(totals, 2)) / (n * (n - 1))
    return None if expected == 0 else 1 - observed / expected


def _difference(level: Level, totals: Counter[Any]) -> Callable[[Any, Any], float]:
    if level == "nominal":
        return lambda a, b: float(a != b)
    if level == "interval":
        return lambda a, b: float((a - b) ** 2)
    ranked = sorted(totals)

    def ordinal(a: Any, b: Any) -> float:
        low, high = sorted((ranked.index(a), ranked.index(b)))
        between = sum(totals[value] for value in ranked[low : high + 1])
        return float((between - (totals[a] + totals[b]) / 2) ** 2) if a != b else 0.0

    return ordinal


def agreement_of(units: Sequence[Sequence[Any]]) -> dict[str, Any] | None:
    """Return the agreement on nominal ratings as JSON values; None when no unit has two.

    A place in a unit's list is an annotator. `fleiss_kappa` is None where the number of ratings varies; `cohen_kappa` is the
    mean over pairs of annotators who judged common units.
    """
    judged = [unit for unit in units if sum(value is not None for value in unit) > 1]
    if not judged:
        return None
    sizes = {len([value for value in unit if value is not None]) for unit in judged}
    kappas = []
    for a, b in combinations(range(max(map(len, judged))), 2):
        common = [(u[a], u[b]) for u in judged if len(u) > b and u[a] is not None and u[b] is not None]
        if common and (kappa := cohen_kappa([x for x, _ in common], [y for _, y in common])) is not None:
            kappas.append(kappa)
    whole = [[value for value in unit if value is not None] for unit in judged]
    return {
        "units": len(judged),
        "all_agree": sum(len(set(unit)) == 1 for unit in whole) / len(whole),
        "krippendorff_alpha": krippendorff_alpha(judged),
        "fleiss_kappa": fleiss_kappa(whole) if len(sizes) == 1 else None,
        "cohen_kappa": sum(kappas) / len(kappas) if kappas else None,
    }
