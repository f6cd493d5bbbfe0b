"""How far a judge of two texts depends on which of them it is shown first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.types import Said
from .intervals import wilson
from .paired import mcnemar

__all__ = ["PositionBias", "bias_of", "counted", "position_bias"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """What pairs asked in both orders say of a judge."""

    pairs: int  # both replies could be read
    unparsed: int  # pairs with a reply that could not be read
    flips: int  # pairs whose two orders disagreed
    flip_rate: float  # flips / pairs
    flip_ci95: tuple[float, float]
    first: int  # pairs where the one shown first won in both orders
    second: int  # pairs where the one shown second won in both orders
    bias: float  # (first − second) / pairs, in [−1, 1]: above 0 it favours what is shown first
    p: float  # that it favours neither


def position_bias(said: Sequence[Sequence[Said]]) -> PositionBias:
    """Return flip rate and position bias from `Verdict.said` of many pairs (equal texts, which were not asked, left out).

    A pair is consistent when the same text wins in both orders, or none does in either. Under no preference for a place,
    pairs won by the first in both orders and by the second in both are equally likely: `p` is the exact sign test on them.
    Source: Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv 2306.05685), section 3.3 and table 2.
    """
    counts = dict.fromkeys(("pairs", "unparsed", "flips", "first", "second"), 0)
    for orders in said:
        for name in counted(orders) if orders else ():
            counts[name] += 1
    return bias_of(**counts)


def counted(orders: Sequence[Said]) -> tuple[str, ...]:
    """Return the counts of `PositionBias` that one pair adds to, by name."""
    if len(orders) != 2:
        raise ValueError("a pair has two orders")
    if "unparsed" in orders:
        return ("unparsed",)
    if tuple(orders) in {("first", "second"), ("second", "first"), ("tie", "tie")}:
        return ("pairs",)
    return ("pairs", "flips", orders[0]) if orders[0] == orders[1] else ("pairs", "flips")


def bias_of(*, pairs: int, unparsed: int, flips: int, first: int, second: int) -> PositionBias:
    """Return flip rate and position bias from counts, as the trace of an evaluation's rows has them."""
    return PositionBias(
        pairs=pairs,
        unparsed=unparsed,
        flips=flips,
        flip_rate=flips / pairs if pairs else 0.0,
        flip_ci95=wilson(flips, pairs),
        first=first,
        second=second,
        bias=(first - second) / pairs if pairs else 0.0,
        p=mcnemar(first, second),
    )
