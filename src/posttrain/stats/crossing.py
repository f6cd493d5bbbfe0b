"""Where one curve of accuracy against cost reaches a level, or overtakes another curve; with intervals over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pool import Array
from .resample import interval, resampled

__all__ = ["Overtaking", "Reach", "Saving", "Track", "overtaking", "reach", "reached_cost", "saving", "sign_change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A curve question by question: scores and costs [questions, points], the points in the order of growing cost."""

    right: Array
    cost: Array

    def __post_init__(self) -> None:
        if self.right.shape != self.cost.shape or self.right.ndim != 2 or not self.right.size:
            raise ValueError(
                f"a curve of scores {self.right.shape} and costs {self.cost.shape}: give [questions, points] of both"
            )
        if not (self.cost > 0).all():
            raise ValueError("a curve with a cost that is not positive has no place on a logarithmic axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where a curve first has a reference's accuracy: `ratio` is its cost there over the reference's cost.

    None: it never does; an upper end of infinity: in more than the interval's tail of the draws it does not. `never` is
    that share of draws. `at_start`: it already has it at its cheapest point, so that the true ratio may be lower still.
    """

    target: float
    reference_cost: float
    cost: float | None
    ratio: float | None
    ci95: tuple[float, float]
    never: float
    at_start: bool
    best: float  # the curve's highest accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Overtaking:
    """Where, on the costs that two curves have in common, the first passes from below the second to above, or back.

    `cost` is None when the curves do not cross there; `above` says whether the first is the higher one at the dearest common
    cost. `never` is the share of bootstrap draws without a crossing, which the interval leaves out; `span` the common costs,
    None when there are none.
    """

    span: tuple[float, float] | None
    cost: float | None
    ci95: tuple[float, float] | None
    above: bool | None
    above_share: float
    never: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A method against uniform spending: its accuracy minus that of uniform at the same setting, and its part of the cost.

    `fraction` is its cost over the cost at which uniform spending first has the same accuracy.
    """

    difference: float
    difference_ci95: tuple[float, float]
    fraction: float
    fraction_ci95: tuple[float, float]
    cost_ratio: float  # its cost over that of uniform at the same setting, whatever the accuracies
    cost_ratio_ci95: tuple[float, float]


def reached_cost(costs: Sequence[float] | Array, accuracies: Sequence[float] | Array, target: float) -> float:
    """Return the least cost at which a curve has the target accuracy, infinity when it never has.

    Points are joined by straight lines over the logarithm of cost; before the first point there is no curve.
    """
    for at, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True)):
        if accuracy >= target:
            if at == 0:
                return float(cost)
            before, low = float(costs[at - 1]), float(accuracies[at - 1])
            share = (target - low) / (accuracy - low)
            return float(math.exp(math.log(before) + share * (math.log(cost) - math.log(before))))
    return math.inf


def reach(
    curve: Track, reference_right: Array, reference_cost: Array, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Reach:
    """Return at what part of a reference's cost the curve has the reference's accuracy, e.g. those of a larger model.

    `reference_*` are [questions], the same questions in the same order: every bootstrap draw takes the same questions for
    both, moves the target with them, and looks for the crossing anew.
    """
    target, paid = float(reference_right.mean()), float(reference_cost.mean())
    right, cost = curve.right.mean(axis=0), curve.cost.mean(axis=0)
    found = reached_cost(cost, right, target)
    rights, costs = _drawn(curve, draws, seed)
    targets = resampled(reference_right, draws=draws, seed=seed)
    paids = resampled(reference_cost, draws=draws, seed=seed)
    ratios = np.array([reached_cost(c, r, t) / p for c, r, t, p in zip(costs, rights, targets, paids, strict=True)])
    return Reach(
        target=target,
        reference_cost=paid,
        cost=found if math.isfinite(found) else None,
        ratio=found / paid if math.isfinite(found) else None,
        ci95=interval(ratios, level=level),
        never=float(np.isinf(ratios).mean()),
        at_start=bool(right[0] >= target),
        best=float(right.max()),
    )


def saving(
    right: Array, cost: Array, uniform: Track, at: int, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Saving:
    """Return what a method ([questions] scores and costs) saves against a uniform curve, whose point `at` is its setting.

    Where uniform spending never has the method's accuracy it is priced at its dearest point, which flatters uniform.
    """

    def fraction(accuracy: float, paid: float, costs: Array, accuracies: Array) -> float:
        return paid / min(reached_cost(costs, accuracies, accuracy), float(costs.max()))

    found = fraction(float(right.mean()), float(cost.mean()), uniform.cost.mean(axis=0), uniform.right.mean(axis=0))
    rights, costs = _drawn(uniform, draws, seed)
    ours = resampled(right, draws=draws, seed=seed)
    paid = resampled(cost, draws=draws, seed=seed)
    fractions = np.array([fraction(*one) for one in zip(ours, paid, costs, rights, strict=True)])
    return Saving(
        difference=float(right.mean() - uniform.right[:, at].mean()),
        difference_ci95=interval(ours - rights[:, at], level=level),
        fraction=found,
        fraction_ci95=interval(fractions, level=level),
        cost_ratio=float(cost.mean() / uniform.cost[:, at].mean()),
        cost_ratio_ci95=interval(paid / costs[:, at], level=level),
    )


def sign_change(
    costs: Array, accuracies: Array, other_costs: Array, other_accuracies: Array
) -> tuple[float | None, bool | None, tuple[float, float] | None]:
    """Return (cost of the last crossing, whether the first curve is above at the end, the common costs) of two curves.

    The last one, for from there on the order of the two does not change again as far as they were measured.
    """
    costs, accuracies = _by_cost(costs, accuracies)
    other_costs, other_accuracies = _by_cost(other_costs, other_accuracies)
    low, high = max(costs[0], other_costs[0]), min(costs[-1], other_costs[-1])
    if not low < high:
        return None, None, None
    knots = np.unique([low, high, *(cost for cost in (*costs, *other_costs) if low < cost < high)])
    at = np.log(knots)
    difference = np.interp(at, np.log(costs), accuracies) - np.interp(at, np.log(other_costs), other_accuracies)
    span = (float(low), float(high))
    held = np.flatnonzero(np.abs(difference) > 1e-12)
    if not len(held):  # the same curve
        return None, None, span
    above = bool(difference[held[-1]] > 0)
    opposite = [index for index in held if (difference[index] > 0) != above]
    if not opposite:
        return None, above, span
    last = opposite[-1]
    share = difference[last] / (difference[last] - difference[last + 1])
    return float(math.exp(at[last] + share * (at[last + 1] - at[last]))), above, span


def overtaking(curve: Track, other: Track, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Overtaking:
    """Return where two curves over the same questions cross at equal cost, with its interval over questions."""
    found, above, span = sign_change(
        curve.cost.mean(axis=0), curve.right.mean(axis=0), other.cost.mean(axis=0), other.right.mean(axis=0)
    )
    if span is None:
        return Overtaking(span=None, cost=None, ci95=None, above=None, above_share=math.nan, never=1.0)
    rights, costs = _drawn(curve, draws, seed)
    other_rights, other_costs = _drawn(other, draws, seed)
    crossed, ups = [], 0
    for one in zip(costs, rights, other_costs, other_rights, strict=True):
        cost, up, _ = sign_change(*one)
        ups += bool(up)
        if cost is not None:
            crossed.append(cost)
    bounds = interval(np.array(crossed), level=level) if crossed else None
    never = 1.0 - len(crossed) / len(rights)
    return Overtaking(span=span, cost=found, ci95=bounds, above=above, above_share=ups / len(rights), never=never)


def _by_cost(costs: Array, accuracies: Array) -> tuple[Array, Array]:
    """Sort the points: held-out costs of neighbouring budgets can change places in a draw."""
    order = np.argsort(costs, kind="stable")
    return costs[order], accuracies[order]


def _drawn(curve: Track, draws: int, seed: int) -> tuple[Array, Array]:
    return resampled(curve.right, draws=draws, seed=seed), resampled(curve.cost, draws=draws, seed=seed)
