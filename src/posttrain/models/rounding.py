"""How float32 masters become bfloat16 weights: each weight rounds at a threshold of its own, so that small steps are seen.

A bfloat16 weight between 1/16 and 1/8 has neighbours 2⁻¹¹ apart. Training begins on these points, so rounded to the nearest
one a weight stays where it is until its master has moved by 2⁻¹²: forty steps at a rate of 3e-6 change nothing at all in the
model that computes, samples and is saved. Here weight i rounds up when the part of the way to its next neighbour exceeds
u_i, numbers spread evenly over (0, 1): of many weights that moved by a tenth of the way, a tenth arrive. On average over the
weights the model is where its masters are; the thresholds stay, so a weight turns only when its master has moved, and a
master on a bfloat16 number is that number.

Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551, section 3) draws u anew each time; fixed thresholds need no state,
give the same weights to a resumed run, and add no noise from step to step.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["round_into"]

_BLOCK = 1 << 18  # weights at a time, and after how many the thresholds begin again: what is in the cache is worked on


@torch.no_grad()
def round_into(weight: Tensor, master: Tensor, first: int = 0) -> None:
    """Write a float32 master into a weight, of bfloat16 by thresholds; any other type rounds to the nearest.

    `first` is the place of the first element in the whole weight, of which this may be a slice.
    """
    if weight.dtype is not torch.bfloat16 or master.dtype is not torch.float32 or not weight.is_contiguous():
        weight.copy_(master)
        return
    flat, wide, thresholds = weight.view(-1), master.detach().reshape(-1), _thresholds(master.device)
    for at in range(0, wide.numel(), _BLOCK):
        part, offset = wide[at : at + _BLOCK], (first + at) % _BLOCK
        bits = part.view(torch.int32) + thresholds[offset : offset + len(part)]  # then what there is no room for is cut off
        flat[at : at + _BLOCK].copy_(bits.bitwise_and_(-65536).view(torch.float32))


@lru_cache
def _thresholds(device: torch.device) -> Tensor:
    """Return (1 − u_i) · 2¹⁶ of two blocks of weights.

    An even spread: of every 2¹⁶ neighbours each has another (an odd factor permutes them), and rows of a matrix differ.
    """
    place = torch.arange(_BLOCK, dtype=torch.int64, device=device)
    once = ((place * 40503 + (place >> 16) * 24571) & 0xFFFF).to(torch.int32)
    return torch.cat([once, once])
