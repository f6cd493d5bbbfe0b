"""How often one side's replies are preferred to the other's: win rate, the same at equal length, by group.

A comparison i of item c(i) has an outcome y_i in [0, 1] for the first side (1 won, 0 lost, ½ tied; of a judge asked in both
orders the mean of the two) and the difference d_i of the two replies' lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..core.types import Said
from .intervals import wilson
from .judging import position_bias
from .paired import holm, mcnemar
from .resample import interval, question_weights

__all__ = ["Outcome", "length_controlled", "win_of", "win_rate", "win_rates_by_group"]

Array = NDArray[np.float64]
# Of φ alone: a normal prior of standard deviation 3.2 on log-odds, so that φ exists where lengths separate wins.
_RIDGE = 0.1
_DRAWS, _FLIPS = 2000, 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One comparison. `lengths` are of the two replies; `said` what a judge preferred with each of them first."""

    item: str
    win: float
    lengths: tuple[int, int] | None = None
    said: tuple[Said, ...] = ()
    judged: bool = True  # False: nothing could be read in any order; counts as a tie
    group: str | None = None


def win_of(said: Sequence[Said]) -> float:
    """Return the first side's outcome from both orders, `said[0]` with it shown first: the mean, a tie ½, unread ½."""
    if not said:
        return 0.5
    first, second = said
    points = {"first": 1.0, "second": 0.0, "tie": 0.5, "unparsed": 0.5}
    return (points[first] + 1 - points[second]) / 2


def win_rate(outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """Return what many comparisons say, as JSON values.

    `rate`: mean over items of the item's mean outcome, every item weighing the same; its interval is a percentile bootstrap
    over items, all comparisons of an item together (Wilson's where all items agree). `p`: that neither side is preferred,
    by flipping the sign of each item's outcome less ½ (exact where it is McNemar's test, else by 9999 draws).
    `controlled`, see `length_controlled`, from the same draws; None where a length is unknown, or where all differences
    are the same and not 0. `flips`: `stats.judging.position_bias`; `first_share`: of the decided verdicts, those for what
    was shown first, ½ for a judge without a preference for a place. Raises `ValueError` without comparisons.
    """
    if not outcomes:
        raise ValueError("no comparisons to take a win rate of")
    items = {name: k for k, name in enumerate(dict.fromkeys(outcome.item for outcome in outcomes))}
    of_N = np.array([items[outcome.item] for outcome in outcomes])
    y_N = np.array([outcome.win for outcome in outcomes], dtype=float)
    if y_N.min() < 0 or y_N.max() > 1:
        raise ValueError("outcomes lie between 0 and 1")
    share_N = 1 / np.bincount(of_N)[of_N]
    mean_C = np.bincount(of_N, weights=y_N) / np.bincount(of_N)
    rate = float(mean_C.mean())
    drawn_DC = question_weights(len(items), _DRAWS, seed)
    same = float(np.ptp(mean_C)) < 1e-12
    bounds = wilson(rate * len(items), len(items)) if same else interval(drawn_DC @ mean_C)
    return {
        "comparisons": len(outcomes),
        "items": len(items),
        "rate": rate,
        "ci95": list(bounds),
        "p": _sign_flips(mean_C - 0.5, seed),
        "won": int((y_N > 0.5).sum()),
        "tied": int((y_N == 0.5).sum()),
        "lost": int((y_N < 0.5).sum()),
        **_lengths(outcomes, y_N, share_N, of_N, drawn_DC, bounds if same else None),
        **_orders(outcomes),
    }


def win_rates_by_group(outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return `win_rate` of each group of comparisons, in the groups' order, with `p_holm` over the groups.

    Comparisons without a group are left out.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.group is not None:
            groups.setdefault(outcome.group, []).append(outcome)
    found = {name: win_rate(inside, seed=seed) for name, inside in sorted(groups.items())}
    for one, p in zip(found.values(), holm([one["p"] for one in found.values()]), strict=True):
        one["p_holm"] = p
    return found


def length_controlled(wins: Array, differences: Array, weights: Array) -> tuple[Array, Array]:
    """Return what the win rate would be if both replies were equally long, and the effect φ of length; one per draw.

    `P(y = 1) = σ(θ + φ·tanh(d / s))`, s the standard deviation of the differences d; the length-controlled rate is the
    prediction at d = 0, σ(θ). By weighted maximum likelihood with a weak ridge, `−0.05 φ²`. With no effect of length it is
    the win rate itself; swapping the sides gives 1 − rate; a side against itself gives ½.

    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval" (arXiv 2404.04475), equation 2, without the term of the
    instruction's difficulty, which needs the results of other models.

    Args:
        wins: [comparisons], in [0, 1].
        differences: [comparisons], length of the first side's reply less that of the other.
        weights: [draws, comparisons], those of the bootstrap; a draw's weights are scaled to their number.
    """
    scale = float(differences.std())
    x_N = np.tanh(differences / scale) if scale > 0 else np.zeros_like(differences)
    w_DN = weights * (weights.shape[1] / weights.sum(axis=1, keepdims=True))
    total_D, won_D = w_DN.sum(axis=1), w_DN @ wins
    plain_D = won_D / total_D
    sure_D = (plain_D < 1e-9) | (plain_D > 1 - 1e-9)  # one side won all: θ is infinite, the rate is not
    safe_D = np.clip(plain_D, 1e-6, 1 - 1e-6)
    theta_D, phi_D = np.log(safe_D / (1 - safe_D)), np.zeros_like(plain_D)
    for _ in range(100):
        p_DN = expit(theta_D[:, None] + phi_D[:, None] * x_N)
        rest_DN, bend_DN = w_DN * (wins - p_DN), w_DN * p_DN * (1 - p_DN)
        g0_D, g1_D = rest_DN.sum(axis=1), rest_DN @ x_N - _RIDGE * phi_D
        h00_D, h01_D, h11_D = bend_DN.sum(axis=1) + 1e-12, bend_DN @ x_N, bend_DN @ (x_N * x_N) + _RIDGE
        det_D = np.maximum(h00_D * h11_D - h01_D**2, 1e-12)
        step0_D, step1_D = (h11_D * g0_D - h01_D * g1_D) / det_D, (h00_D * g1_D - h01_D * g0_D) / det_D
        cap_D = np.minimum(1.0, 2.0 / np.maximum(np.hypot(step0_D, step1_D), 1e-12))  # Newton's step, at most 2 long
        theta_D, phi_D = theta_D + np.where(sure_D, 0, cap_D * step0_D), phi_D + np.where(sure_D, 0, cap_D * step1_D)
        if float(np.max(np.where(sure_D, 0, np.abs(step0_D) + np.abs(step1_D)))) < 1e-10:
            break
    return np.where(sure_D, plain_D, expit(theta_D)), phi_D


def _lengths(
    outcomes: Sequence[Outcome],
    y_N: Array,
    share_N: Array,
    of_N: NDArray[Any],
    drawn_DC: Array,
    agreed: tuple[float, float] | None,
) -> dict[str, Any]:
    known = [outcome.lengths for outcome in outcomes if outcome.lengths is not None]
    nothing = dict.fromkeys(("mean_lengths", "controlled", "controlled_ci95", "length_effect", "longer_wins"))
    if len(known) < len(outcomes):
        return nothing
    ours_N, theirs_N = np.array(known, dtype=float).T
    d_N = ours_N - theirs_N
    decided_N = (d_N != 0) & (y_N != 0.5)
    found: dict[str, Any] = nothing | {
        "mean_lengths": [float(ours_N.mean()), float(theirs_N.mean())],
        "longer_wins": float(((d_N > 0) == (y_N > 0.5))[decided_N].mean()) if decided_N.any() else None,
    }
    if d_N.std() == 0 and d_N.any():  # always the same difference: nothing tells what length does
        return found
    (rate,), (effect,) = length_controlled(y_N, d_N, share_N[None, :])
    bounds = agreed
    if bounds is None:
        step = max(1, 2_000_000 // len(d_N))
        drawn = [length_controlled(y_N, d_N, w_DC[:, of_N] * share_N)[0] for w_DC in _chunks(drawn_DC, step)]
        bounds = interval(np.concatenate(drawn))
    return found | {"controlled": float(rate), "controlled_ci95": list(bounds), "length_effect": float(effect)}


def _chunks(rows: Array, size: int) -> list[Array]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _orders(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    said = [outcome.said for outcome in outcomes if outcome.said]
    unjudged = sum(not outcome.judged for outcome in outcomes)
    if not said:
        return {"unjudged": unjudged, "flips": None, "first_share": None}
    places = [place for orders in said for place in orders if place in ("first", "second")]
    return {
        "unjudged": unjudged,
        "flips": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(position_bias(said)).items()},
        "first_share": places.count("first") / len(places) if places else None,
    }


def _sign_flips(d_C: Array, seed: int) -> float:
    """Return the two-sided p of a mean of 0 when every sign is as likely as its opposite (Fisher 1935)."""
    apart = d_C[np.abs(d_C) > 1e-12]
    if len(apart) == 0 or float(np.ptp(np.abs(apart))) < 1e-12:
        return mcnemar(int((apart > 0).sum()), int((apart < 0).sum()))
    generator, observed, reached = np.random.default_rng(seed), abs(math.fsum(apart)), 0
    for size in [1000] * (_FLIPS // 1000) + [_FLIPS % 1000]:
        signs = generator.integers(0, 2, size=(size, len(apart))) * 2 - 1
        reached += int((np.abs(signs @ apart) >= observed - 1e-9).sum())
    return (1 + reached) / (1 + _FLIPS)
