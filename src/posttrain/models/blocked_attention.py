"""Attention of one packed group on a processor, in blocks of queries: keys that a block cannot see are not multiplied.

A group lies as [prefix | branch 1 | branch 2 | …]; a token sees the prefix and what stands before it in its own branch. A
block is a run of queries [start, end). Its keys are two runs: the prefix [0, prefix) and [first, end), where `first` is
where the branch of its first query begins. So a causal group costs little more than half of its square, and a group of g
branches about what its branches would cost one by one, not the square of their sum.

Query heads that share keys are multiplied as one matrix; scores and softmax are in at least float32. Backward:
dS = P ∘ (dP − rowsum(dP ∘ P)), with P kept in the input's type, or computed again where it would be too large.

Shapes: L tokens of a group, n queries and m keys of a block, H query heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Block", "attend", "blocks_of", "pairs"]

ROWS = 128  # queries of a block: smaller ones multiply fewer keys in vain, larger ones run at a higher rate


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [start, end), and their keys: [0, prefix) and [first, end). `bias_nm` is −∞ where a key is not seen."""

    start: int
    end: int
    prefix: int
    first: int
    bias_nm: Tensor

    def keys(self, x_KLD: Tensor) -> Tensor:
        """Return the keys' (or values') rows, `x_KmD`."""
        own = x_KLD[:, self.first : self.end]
        return torch.cat([x_KLD[:, : self.prefix], own], 1) if self.prefix else own

    def queries(self, x_KGLD: Tensor) -> Tensor:
        """Return the queries' rows, those of heads that share keys one below the other: `x_K(Gn)D`."""
        return x_KGLD[:, :, self.start : self.end].flatten(1, 2)

    def add(self, sum_KLD: Tensor, part_KmD: Tensor) -> None:
        """Add what the block found for its keys."""
        sum_KLD[:, : self.prefix] += part_KmD[:, : self.prefix]
        sum_KLD[:, self.first : self.end] += part_KmD[:, self.prefix :]


def blocks_of(prefix: int, branches: Sequence[int], window: int | None) -> tuple[Block, ...]:
    """Cut a group into blocks: a long branch into even parts, short neighbours together."""
    positions = torch.cat([torch.arange(prefix), *(prefix + torch.arange(n) for n in branches)])
    branch = torch.cat([torch.full((n,), i - 1) for i, n in enumerate((prefix, *branches))])
    runs: list[tuple[int, int, int]] = []  # start, end, first
    at = 0
    for length in (prefix, *branches):
        if not length:
            continue
        if runs and at + length - runs[-1][0] <= ROWS:
            runs[-1] = (runs[-1][0], at + length, runs[-1][2])
        else:
            parts = -(-length // ROWS)
            runs += [(at + length * i // parts, at + length * (i + 1) // parts, at) for i in range(parts)]
        at += length
    blocks = []
    for start, end, first in runs:
        before = min(prefix, first)
        keys = torch.cat([torch.arange(before), torch.arange(first, end)])
        distance = positions[start:end, None] - positions[keys]
        seen = (distance >= 0) & ((branch[keys] == -1) | (branch[keys] == branch[start:end, None]))
        if window is not None:
            seen &= distance < window
        blocks.append(Block(start, end, before, first, torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))))
    return tuple(blocks)


def pairs(blocks: Sequence[Block]) -> int:
    """Return how many products of a query and a key the blocks compute for each head."""
    return sum(block.bias_nm.numel() for block in blocks)


def attend(
    q_HLD: Tensor, k_KLD: Tensor, v_KLD: Tensor, blocks: Sequence[Block], scale: float, *, keep: bool = True
) -> Tensor:
    """Return softmax(q kᵀ · scale + bias) v of every block's queries, `out_HLD`, with gradients.

    `keep` holds the probabilities for the backward pass; without, it computes them again.
    """
    out: Tensor = _Attend.apply(q_HLD, k_KLD, v_KLD, blocks, scale, keep)  # type: ignore[no-untyped-call]
    return out


def _probabilities(block: Block, q_KRD: Tensor, k_KmD: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(q_KRD.dtype, torch.float32)
    scores = torch.bmm(q_KRD.to(wide), k_KmD.to(wide).transpose(1, 2)).mul_(scale)
    shape = scores.shape
    return scores.view(-1, *block.bias_nm.shape).add_(block.bias_nm).softmax(-1).to(q_KRD.dtype).view(shape)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, blocks, scale, keep):  # type: ignore[no-untyped-def]
        (H, L, D), K = q.shape, k.shape[0]
        q = q.reshape(K, H // K, L, D)
        out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), []
        for block in blocks:
            p = _probabilities(block, block.queries(q), block.keys(k), scale)
            mixed = torch.bmm(p, block.keys(v))
            out[:, :, block.start : block.end] = mixed.view(K, H // K, -1, D)
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out.view(H, L, D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out):  # type: ignore[no-untyped-def]
        q, k, v, *kept = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        d_out = d_out.reshape(q.shape)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for number, block in enumerate(ctx.blocks):
            q_b, k_b, v_b, d_b = block.queries(q), block.keys(k), block.keys(v), block.queries(d_out)
            p = kept[number] if kept else _probabilities(block, q_b, k_b, ctx.scale)
            block.add(dv, torch.bmm(p.transpose(1, 2), d_b))
            dp, p = torch.bmm(d_b.to(wide), v_b.to(wide).transpose(1, 2)), p.to(wide)
            ds = dp.sub_((dp * p).sum(-1, keepdim=True)).mul_(p).mul_(ctx.scale).to(q.dtype)
            part = torch.bmm(ds, k_b)
            dq[:, :, block.start : block.end] = part.view(*q.shape[:2], -1, q.shape[3])
            block.add(dk, torch.bmm(ds.transpose(1, 2), q_b))
        return dq.view(-1, *q.shape[2:]), dk.to(k.dtype), dv.to(v.dtype), None, None, None
