"""How far a judge of two texts depends on which of them it is shown first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.types import Said
from .intervals import wilson
from .paired import mcnemar

__all__ = ["PositionBias", "position_bias"]


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
    asked = [tuple(orders) for orders in said if orders]
    if any(len(orders) != 2 for orders in asked):
        raise ValueError("a pair has two orders")
    read = [orders for orders in asked if "unparsed" not in orders]
    consistent = {("first", "second"), ("second", "first"), ("tie", "tie")}
    flips = sum(orders not in consistent for orders in read)
    first, second = read.count(("first", "first")), read.count(("second", "second"))
    return PositionBias(
        pairs=len(read),
        unparsed=len(asked) - len(read),
        flips=flips,
        flip_rate=flips / len(read) if read else 0.0,
        flip_ci95=wilson(flips, len(read)),
        first=first,
        second=second,
        bias=(first - second) / len(read) if read else 0.0,
        p=mcnemar(first, second),
    )
