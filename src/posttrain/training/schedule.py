"""The learning rate of each step: warm-up, then a decay."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Schedule", "learning_rate"]

Schedule = Literal["constant", "linear", "cosine", "wsd"]


def learning_rate(
    step: int, *, total: int, peak: float, schedule: Schedule, warmup: float, decay_share: float = 0.2
) -> float:
    """Return the rate of update `step` (from 0) of `total`.

    Warm-up is linear over w = ⌈warmup · total⌉ updates and its last one runs at the peak; then linear decay to 0, cosine
    decay to 0 (both reach 0 only after the last update, so that none is wasted), or no decay. "wsd" (warm-up, stable,
    decay) stays at the peak and decays linearly over the last d = ⌈decay_share · total⌉ updates (at most total − w):

        lr(s) = peak · (s + 1) / w            s < w
                peak                          w ≤ s < total − d
                peak · (total − s) / (d + 1)  otherwise

    Source of "wsd": Hu et al. 2024 (MiniCPM, arXiv 2404.06395); the linear form of the decay is a choice made here.
    """
    warm = math.ceil(warmup * total)
    if step < warm:
        return peak * (step + 1) / warm
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        decay = min(math.ceil(decay_share * total), total - warm)
        return peak * min(1.0, (total - step) / (decay + (1 if total > decay else 0)))
    left = (total - step) / (total - warm + (1 if warm else 0))
    return peak * left if schedule == "linear" else peak * 0.5 * (1 - math.cos(math.pi * left))
