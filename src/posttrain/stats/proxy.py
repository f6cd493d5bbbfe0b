"""A proxy score against the gold score over N: what choosing the best by a score is really worth, and when it is gamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import bootstrap

__all__ = ["BestOf", "CurvePoint", "best_of_k", "proxy_gold_curve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """Expected gold and proxy score of the sample that the proxy likes best among k; no proxy where none was scored."""

    gold: float
    proxy: float | None


def best_of_k(proxy: Sequence[float | None], gold: Sequence[float], k: int) -> BestOf:
    """Return the exact expectation, over all k-subsets of a pool of n, of the gold score of the proxy's argmax.

    Samples sorted by proxy; for a value v with c samples below it and e samples at it, the best of k is at v with
    probability `[C(c + e, k) − C(c, k)] / C(n, k)`, and is then each of these e with equal chance (ties are shared).
    A sample without a proxy score (None) is chosen only when there is no other.
    """
    n = len(proxy)
    if len(gold) != n:
        raise ValueError(f"{n} proxy scores against {len(gold)} gold scores")
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} needs between 1 and {n} samples")
    groups: dict[float, list[float]] = {}
    for value, worth in zip(proxy, gold, strict=True):
        groups.setdefault(-math.inf if value is None else value, []).append(worth)
    total = math.comb(n, k)
    below, golds, proxies, known = 0, [], [], 0
    for value in sorted(groups):
        members = groups[value]
        ways = math.comb(below + len(members), k) - math.comb(below, k)
        below += len(members)
        golds.append(ways / total * (math.fsum(members) / len(members)))
        if value > -math.inf:
            known += ways
            proxies.append(ways / total * value)
    return BestOf(gold=math.fsum(golds), proxy=math.fsum(proxies) * (total / known) if known else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Means over questions at one k, the gold score with its interval over questions."""

    k: int
    gold: float
    ci95: tuple[float, float]
    proxy: float | None


def proxy_gold_curve(
    pools: Sequence[tuple[Sequence[float | None], Sequence[float]]], ks: Sequence[int], *, seed: int = 0
) -> list[CurvePoint]:
    """Return the curve over k for questions given as (proxy scores, gold scores) of their samples.

    A proxy that is gamed shows as a rising `proxy` with a `gold` that falls behind the best k before it.
    Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), section 2 (best-of-n by an unbiased estimator).
    """
    if not pools:
        raise ValueError("no questions")
    points = []
    for k in ks:
        found = [best_of_k(proxy, gold, k) for proxy, gold in pools]
        golds = [best.gold for best in found]
        proxies = [best.proxy for best in found if best.proxy is not None]
        points.append(
            CurvePoint(
                k=k,
                gold=math.fsum(golds) / len(golds),
                ci95=bootstrap(golds, seed=seed),
                proxy=math.fsum(proxies) / len(proxies) if proxies else None,
            )
        )
    return points
