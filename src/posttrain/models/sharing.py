"""Packed, prefix-shared forward: no padding, and a prompt that several completions have in common is computed once.

A group of sequences with a common prefix (a DPO pair, the samples of one prompt) is laid out as one run of tokens,
[prefix | rest of 1 | rest of 2 | …], and all groups of a micro-batch end to end in one row. Positions restart after the
prefix; a token sees the prefix, and what stands before it in its own branch. Keys and values of the prefix thus receive
gradients from every branch. Everything but attention is per token, so values and gradients equal those of the plain
forward, up to rounding. The idea: "Accelerating DPO with prefix sharing", 2410.20305.

Attention runs group by group through transformers' `AttentionInterface`, scores and softmax in at least float32; on a
processor in blocks that leave out what no query of them sees (`blocked_attention`).

Shapes: B = 1 row, T packed tokens, L tokens of one group, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ..core.types import ModelShape
from .blocked_attention import Block, attend, blocks_of, pairs
from .collate import Batch, TokenSequence, trained_positions

__all__ = ["Layout", "pack", "packed_attention", "share_opening", "shared_prefix"]

IMPLEMENTATION = "posttrain_packed"
ATTENTION_PRICE = 3.0  # seconds per operation of small attention products against large linear ones, on a processor
LONG = 1 << 20  # query-key pairs of a group above which probabilities are not kept for the backward pass: 2 MB a head


@dataclass(frozen=True, slots=True)
class Group:
    """Where a group lies in the row, and its branches: the lengths of what follows the prefix."""

    start: int
    prefix: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(self.branches)


@dataclass(slots=True)
class Layout:
    """The groups of a micro-batch; masks are made once and serve every layer."""

    groups: tuple[Group, ...]
    _masks: dict[Any, Tensor] = field(default_factory=dict)
    _blocks: dict[Any, tuple[Block, ...]] = field(default_factory=dict)

    def visible(self, group: Group, window: int | None, device: torch.device) -> Tensor:
        """Return which keys each query of a group sees: `mask_LL`, True where it does."""
        key = (group.prefix, group.branches, window)
        if key not in self._masks:
            branch = torch.cat([torch.full((n,), i - 1) for i, n in enumerate((group.prefix, *group.branches))])
            position = torch.cat([torch.arange(group.prefix), *(group.prefix + torch.arange(n) for n in group.branches)])
            distance = position[:, None] - position[None, :]
            seen = (distance >= 0) & ((branch[None, :] == -1) | (branch[None, :] == branch[:, None]))
            if window is not None:
                seen &= distance < window
            self._masks[key] = seen.to(device)
        return self._masks[key]

    def bias(self, group: Group, window: int | None, device: torch.device) -> Tensor:
        """Return 0 where a key is seen and −∞ where it is not: `bias_LL`, float32."""
        key = (group.prefix, group.branches, window, "bias")
        if key not in self._masks:
            seen = self.visible(group, window, device)
            self._masks[key] = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))
        return self._masks[key]

    def blocks(self, group: Group, window: int | None) -> tuple[Block, ...]:
        """Return the blocks that a group's attention is computed in on a processor."""
        key = (group.prefix, group.branches, window)
        if key not in self._blocks:
            self._blocks[key] = blocks_of(*key)
        return self._blocks[key]


def shared_prefix(sequences: Sequence[TokenSequence]) -> int:
    """Return how many leading token ids all the sequences of a group have in common; 0 for a group of one."""
    if len(sequences) < 2:
        return 0
    first, *others = (list(s.ids) for s in sequences)
    length = min(len(first), *(len(o) for o in others))
    for other in others:
        if other[:length] != first[:length]:
            length = next(i for i in range(length) if other[i] != first[i])
    return length


def share_opening(sequences: Sequence[TokenSequence], shape: ModelShape) -> list[list[TokenSequence]]:
    """Cut unrelated sequences into groups that compute their common opening (system prompt, instruction) once.

    A group of g sequences with p common tokens saves p (g - 1) tokens of matrix products. Its attention is dense over the
    whole group where no blocks are left out (not on a processor), and costs more the longer it is: the size with the
    fewest operations is taken, attention's counted `ATTENTION_PRICE` times because they run slower than large products.
    """
    prefix = shared_prefix(sequences)
    if not prefix:
        return [[sequence] for sequence in sequences]
    mean = sum(len(sequence.ids) for sequence in sequences) / len(sequences)

    def price(size: int) -> float:
        tokens = prefix + size * (mean - prefix)
        return (2 * shape.matmul_params * tokens + ATTENTION_PRICE * 4 * shape.attention_width * tokens**2) / size

    best = min((size for size in (1, 2, 4, 8, 16) if size <= len(sequences)), key=price)
    return [list(sequences[at : at + best]) for at in range(0, len(sequences), best)]


def pack(groups: Sequence[Sequence[TokenSequence]], *, lag: int = 1) -> Batch:
    """Lay groups of sequences out in one row. `owner_N` counts sequences in the order given, group by group.

    `lag` is that of `collate`.
    """
    ids: list[int] = []
    positions: list[Tensor] = []
    where: list[Tensor] = []
    targets: list[Tensor] = []
    owner: list[Tensor] = []
    laid: list[Group] = []
    for group in groups:
        prefix, start = shared_prefix(group), len(ids)
        ids += group[0].ids[:prefix]
        positions.append(torch.arange(prefix))
        for sequence in group:
            offset = len(ids) - prefix  # where the branch's token i lies: offset + i
            trained = trained_positions(sequence, lag=lag)
            before = trained - lag
            where.append(torch.where(before < prefix, start + before, offset + before))
            targets.append(torch.tensor(sequence.ids, dtype=torch.long)[trained])
            owner.append(torch.full_like(trained, len(owner)))
            ids += sequence.ids[prefix:]
            positions.append(torch.arange(prefix, len(sequence.ids)))
        laid.append(Group(start, prefix, tuple(len(s.ids) - prefix for s in group)))
    return Batch(
        ids_BT=torch.tensor([ids], dtype=torch.long),
        attention_BT=None,
        where_N=torch.cat(where),
        targets_N=torch.cat(targets),
        owner_N=torch.cat(owner),
        sequences=len(owner),
        tokens=len(ids),
        positions_BT=torch.cat(positions)[None],
        layout=Layout(tuple(laid)),
    )


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Let a model's attention layers read the batch's layout inside this context."""
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over [1, H, T, D] queries, group by group; returns [1, T, H, D]."""
    if s_aux is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError("packed attention: sinks or attention that is not causal")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = []
    for group in layout.groups:
        at = slice(group.start, group.start + group.length)
        q, k, v = query[0, :, at], key[0, :, at], value[0, :, at]
        if softcap is not None or dropout:
            mixed = _attention_by_autograd(q, k, v, layout.bias(group, sliding_window, q.device), scale, softcap, dropout)
        elif q.device.type != "cpu":
            mixed = _attention_by_sdpa(q, k, v, layout.visible(group, sliding_window, q.device), scale)
        else:
            blocks = layout.blocks(group, sliding_window)
            mixed = attend(q, k, v, blocks, scale, keep=pairs(blocks) <= LONG)
        out.append(mixed.transpose(0, 1))
    return torch.cat(out)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _attention_by_autograd(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """As it is written: softmax(cap(q kᵀ · scale) + bias) v, in at least float32 up to the softmax."""
    wide = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = (q.to(wide) @ k.to(wide).transpose(1, 2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    p = (scores + bias).softmax(-1).to(q.dtype)
    return torch.nn.functional.dropout(p, dropout) @ v


def _attention_by_sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    repeats = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    mixed = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible, scale=scale)
    return mixed[0]
