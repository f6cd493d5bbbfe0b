"""Attention of a decode step: one new token in every slot of a range, run by run.

Grouped products read the keys and values of a run from a dense copy, and those that its rows share once. PyTorch's attention
kernel for processors reads slots where they lie: it gives bfloat16 products to MKL, one per row and head, and keeps scores
and weights in float32. Which is faster depends on the processor: MKL has bfloat16 kernels for Intel's and takes a slow path
on others (`benchmarks/processor_costs.py` measures both). Rows that share a long stem are better off grouped everywhere:
`runs.plan_runs` knows the prices.

Dimensions: R rows, r rows of a run, L positions read, P of them shared, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .runs import Run
from .step import Step

__all__ = ["attend_decode", "attend_grouped", "attend_in_place", "dense", "in_place_is_fast", "weights_of"]


def attend_decode(
    step: Step, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention of a decode step, [R, H, 1, D], run by run; result [R, 1, H, D]."""
    (R, H, _, D), G = query.shape, key.shape[1]
    in_place = softcap is None and in_place_is_fast(query.dtype, query.device)
    # The H / G query heads that share a key/value head are rows of one product; nothing is expanded.
    grouped = (query * scaling).reshape(R, G, H // G, D)

    def attended(run: Run) -> Tensor:
        if in_place and not run.shared:
            return attend_in_place(run, query, key, value, mask, scaling).transpose(1, 2)
        return attend_grouped(run, grouped, key, value, mask, softcap).reshape(run.high - run.low, 1, H, -1)

    if len(step.runs) == 1 and step.runs[0].high == R:
        return attended(step.runs[0])
    out = query.new_zeros(R, 1, H, value.shape[-1])
    for run in step.runs:
        out[run.low : run.high] = attended(run)
    return out


def attend_grouped(
    run: Run, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None
) -> Tensor:
    """Attention of one run of rows, one query token each: [r, G, H/G, D] over its shared and its own positions.

    All rows' queries meet the shared keys in one product per head, [G, r·H/G, D] × [G, D, P]; the scores are then
    joined with those of each row's own positions, so that the softmax is the same as if nothing were shared.
    """
    low, high, P, reach = run
    query = query[low:high]
    r, G, group, D = query.shape
    scores = torch.matmul(query, dense(key[low:high, :, P:reach]).transpose(2, 3))
    if P:
        stem = torch.matmul(query.transpose(0, 1).reshape(G, r * group, D), dense(key[low, :, :P]).transpose(1, 2))
        scores = torch.cat([stem.view(G, r, group, P).transpose(0, 1), scores], dim=-1)
    weights = weights_of(scores, None if mask is None else mask[low:high, :, :, :reach], softcap)
    out = torch.matmul(weights[..., P:], dense(value[low:high, :, P:reach]))
    if P:
        stem = torch.matmul(weights[..., :P].transpose(0, 1).reshape(G, r * group, P), dense(value[low, :, :P]))
        out = out + stem.view(G, r, group, -1).transpose(0, 1)
    return out


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


def weights_of(scores: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    """Return softmax(softcap · tanh(scores / softcap) + mask), in the type of the scores (computed in float32)."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1)


def dense(kept: Tensor) -> Tensor:
    """Return a part of the slots in the form that a product reads fastest: dense in bfloat16 on CPU, as it is elsewhere."""
    return kept.contiguous() if kept.dtype == torch.bfloat16 and kept.device.type == "cpu" else kept
