"""Decode attention that reads slots where they lie, on processors whose products take a matrix of any stride.

PyTorch's attention kernel for processors gives bfloat16 products to MKL, one per row and head, in place, and keeps scores
and weights in float32. On Intel's processors that is 1.5 to 4 times as fast as grouped products, for which a part of the
slots must be copied first, and half as inexact. On others MKL takes a slow path (on an AMD EPYC ten times as slow).
Rows that share a long stem are better off with grouped products all the same: `runs.plan_runs` knows the prices.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .runs import Run

__all__ = ["attend_in_place", "in_place_is_fast"]


@cache
def in_place_is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of small bfloat16 matrices run in MKL's own bfloat16 kernels."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    ask = getattr(torch.cpu, "get_capabilities", None)  # not in all versions of PyTorch
    found = ask() if ask is not None else {}
    return bool(found.get("avx512_bf16")) and "intel" in str(found.get("cpu_name", "")).lower()


def attend_in_place(run: Run, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of one run of rows, one query token each: [r, H, 1, D] over the first positions of slots [r, G, L, D]."""
    rows = slice(run.low, run.high)
    return scaled_dot_product_attention(
        query[rows],
        key[rows, :, : run.reach],
        value[rows, :, : run.reach],
        attn_mask=None if mask is None else mask[rows, :, :, : run.reach],
        scale=scaling,
        enable_gqa=True,
    )
