"""Comparing two methods on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import bdtr, ndtri

__all__ = ["Paired", "compare", "holm", "mcnemar", "pooled", "tango"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A method against its reference on n shared examples; `difference` is its accuracy minus the reference's."""

    n: int
    gained: int  # right where the reference is wrong
    lost: int  # wrong where the reference is right
    difference: float
    ci95: tuple[float, float]
    p: float


def compare(scores: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compare 0/1 scores of the same examples in the same order: difference, Tango interval, exact McNemar p."""
    if len(scores) != len(reference):
        raise ValueError(f"{len(scores)} scores against {len(reference)}: a paired comparison needs the same examples")
    for score in (*scores, *reference):
        if score not in (0.0, 1.0):
            raise ValueError(f"score {score} is neither 0 nor 1: McNemar's test is for right and wrong")
    gained = sum(a > b for a, b in zip(scores, reference, strict=True))
    lost = sum(a < b for a, b in zip(scores, reference, strict=True))
    n = len(scores)
    return Paired(
        n=n,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / n if n else 0.0,
        ci95=tango(gained, lost, n),
        p=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p of McNemar's test: `min(1, 2·P(X ≤ min(gained, lost)))`, X ~ Binomial(gained + lost, ½).

    Only examples on which the two methods differ carry information; without any, p = 1.
    Source: McNemar 1947, Psychometrika 12; exact form as in Fagerland, Lydersen and Laake 2013, section 2.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"gained {gained}, lost {lost}: counts cannot be negative")
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def tango(gained: int, lost: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Tango's score interval of the paired difference (gained − lost)/n; (−1, 1) when n is 0.

    The differences δ that the score test `T(δ) = (gained − lost − nδ)/√(n(2q + δ(1 − δ)))` does not reject, q being
    the probability of losing under δ by maximum likelihood: `q = (√(B² − 4AC) − B)/2A`, `A = 2n`,
    `B = −gained − lost + (2n − gained + lost)δ`, `C = −lost·δ(1 − δ)`. At δ = 0 it is McNemar's test, and it does not
    collapse when no example differs. Source: Tango 1998, Statistics in Medicine 17, equations 12 to 14.
    """
    if not (gained >= 0 and lost >= 0 and gained + lost <= n):
        raise ValueError(f"gained {gained}, lost {lost} of {n} examples")
    if n == 0:
        return -1.0, 1.0
    z = float(ndtri((1 + level) / 2))
    difference = (gained - lost) / n

    def excess(delta: float, side: float) -> float:
        a = 2.0 * n
        b = -gained - lost + (2.0 * n - gained + lost) * delta
        c = -lost * delta * (1.0 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1.0 - delta))
        return gained - lost - n * delta - side * z * math.sqrt(max(variance, 0.0))

    step = 1e-9  # at the estimate itself the variance can be 0, which would pass for a root
    low = -1.0 if lost == n else float(brentq(excess, -1.0, difference - step, args=(1.0,), xtol=1e-12))
    high = 1.0 if gained == n else float(brentq(excess, difference + step, 1.0, args=(-1.0,), xtol=1e-12))
    return low, high


def pooled(pairs: Sequence[Paired], *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return the mean of independent paired differences d_t, each weighing the same, and its normal interval.

    `mean ± z·√(Σ s_t²)/T`, `s² = (b + c − (b − c)²/n)/n²` for b gained and c lost of n; where no example differs `s` is
    taken as if one did. Tasks are fixed, their examples drawn. Source: the variance of Wald's interval, as in Fagerland,
    Lydersen and Laake 2014, Statistics in Medicine 33.
    """
    if not pairs:
        raise ValueError("no differences to take the mean of")
    variances = []
    for pair in pairs:
        changed = max(pair.gained + pair.lost, 1)
        variances.append((changed - (pair.gained - pair.lost) ** 2 / pair.n) / pair.n**2)
    mean = math.fsum(pair.difference for pair in pairs) / len(pairs)
    half = float(ndtri((1 + level) / 2)) * math.sqrt(math.fsum(variances)) / len(pairs)
    return mean, (mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values: of the i-th smallest of m, `max over j ≤ i of min(1, (m − j + 1)·p_(j))`.

    Rejecting what is below 5 % keeps the chance of any false finding among them below 5 %, however the tests depend.
    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
