"""Slot tensors behind transformers' cache interface, and the attention that reads them.

Dimensions: R rows of a decode step, S slots, T new tokens, L positions read, H query heads, G key/value heads, D head size,
C capacity (positions) of a slot.

A prefill is packed: the new tokens of all its sequences follow each other in one row, [1, T], each with its own position,
so that no layer works on padding; only here, in attention, are they told apart.

Keys and values are kept as they come, [S, G, C, D], so that a new token is written in one piece. oneDNN's products take
only dense matrices and would copy a part of a slot element by element; `dense` copies it row by row.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from ...core.errors import ModelError
from .decode_attention import attend_decode, dense, weights_of
from .step import IMPLEMENTATION, Step, current

__all__ = ["IMPLEMENTATION", "SlotCache"]

_GROUPED = range(128, 1025)  # new tokens of a sequence for which grouped products beat PyTorch's flash kernel on CPU
_QUERIES = 256  # query tokens of a prefill that attend at a time: bounds the matrix of scores


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of many sequences: one slot each, allocated at first use and grown on demand.

    Every slot begins with the same `front` positions (of prefix or prompt tuning), given by `begin_with`. `capacity`, and
    lengths handed to `copy`, are without them; positions of a `Step` count them.
    """

    def __init__(self, front: int = 0) -> None:
        super().__init__(layers=[])
        self.front = front
        self._states_GVD: Sequence[tuple[Tensor, Tensor]] | None = None  # of the front, by layer
        self.keys_SGCD: list[Tensor] = []
        self.values_SGCD: list[Tensor] = []
        self.rows = 0
        self.capacity = 0

    def __len__(self) -> int:
        return len(self.keys_SGCD)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values per position, all layers; 0 before the first forward pass."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in [*self.keys_SGCD, *self.values_SGCD])

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for `rows` slots of `capacity` positions; what is there stays."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        self.rows, self.capacity = max(rows, self.rows), max(capacity, self.capacity)
        for kept in (self.keys_SGCD, self.values_SGCD):
            for layer, old in enumerate(kept):
                new = _zeros(old, self.rows, old.shape[1], self.front + self.capacity, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                kept[layer] = new
        for layer in range(len(self) if self.front else 0):
            self._write_front(layer)

    def begin_with(self, states_GVD: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Let every slot begin with these keys and values, one pair of [G, front, D] for each layer."""
        self._states_GVD = states_GVD
        for layer in range(len(self)):
            self._write_front(layer)

    def _write_front(self, layer: int) -> None:
        assert self._states_GVD is not None  # the runner gives them before its first forward pass
        for kept, front in zip((self.keys_SGCD[layer], self.values_SGCD[layer]), self._states_GVD[layer], strict=True):
            kept[:, :, : self.front] = front

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of one slot to others."""
        at = slice(self.front, self.front + length)
        for kept in (*self.keys_SGCD, *self.values_SGCD):
            part = kept[source, :, at]
            for target in targets:  # one by one: in blocks, where an index of targets would go element by element
                kept[target, :, at] = part

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, [1, G, T, D] or [R, G, 1, D], into their slots; return what attention reads.

        For a fresh prefill these are the new ones; for a decode its range of slots, [R, G, L, D]; otherwise all slots,
        [S, G, C, D].
        """
        step = current()
        if layer_idx == len(self.keys_SGCD):  # zeros, not garbage: masked positions still meet a multiplication by 0
            _, G, _, D = key_states.shape
            room = self.front + self.capacity
            self.keys_SGCD.append(_zeros(key_states, self.rows, G, room, D))
            self.values_SGCD.append(_zeros(value_states, self.rows, G, room, value_states.shape[-1]))
            if self.front:
                self._write_front(layer_idx)
        keys, values = self.keys_SGCD[layer_idx], self.values_SGCD[layer_idx]
        if step.decode:
            low, high = step.slots[0], step.slots[-1] + 1
            keys[step.rows, :, step.positions[:, 0]] = key_states[:, :, 0]
            values[step.rows, :, step.positions[:, 0]] = value_states[:, :, 0]
            return keys[low:high, :, : step.reach], values[low:high, :, : step.reach]
        at = 0
        for slot, start, length in zip(step.slots, step.starts, step.lengths, strict=True):
            keys[slot, :, start : start + length] = key_states[0, :, at : at + length]
            values[slot, :, start : start + length] = value_states[0, :, at : at + length]
            at += length
        return (key_states, value_states) if step.fresh else (keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always handed over explicitly."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the number of positions this step reads, and the offset of the first."""
        return current().reach, 0


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Return zeros of the type and on the device of `like`.

    On CPU the system clears pages only when they are written. Mapped here and not by numpy.zeros, which asks for huge
    pages: the few positions that a slot uses would then have nearly all of its room cleared.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not size:
        return like.new_zeros(shape)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(like.dtype).view(shape)


def _slot_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    dtype: torch.dtype = torch.float32,
    **_: Any,
) -> Tensor | None:
    """Evaluate the model's own mask rule (causal, sliding, chunked) at each row's positions: additive, [1 or R, 1, T, L]."""
    step = current()
    if use_vmap:
        raise ModelError("this model's attention mask is not a function of positions alone; the local engine cannot run it")
    if step.fresh and allow_is_causal_skip and (local_size is None or step.reach <= local_size):
        return None  # plain causal within each sequence
    device = step.positions.device
    row = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    kv = torch.arange(kv_length, device=device)[None, None, None, :]
    allowed = mask_function(row, head, step.positions[:, None, :, None], kv)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))
    return mask.expand(batch_size, 1, q_length, kv_length)


def _attend_piece(
    query: Tensor, key: Tensor, value: Tensor, start: int, mask: Tensor, softcap: float | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Attention of one sequence's new tokens [G, H/G, T, D] over its keys and values [G, L, D].

    Some query tokens at a time, to bound the matrix of scores: yields (from, until, [G, H/G, until - from, D]).
    """
    G, group, T, D = query.shape
    for at in range(0, T, _QUERIES):
        until = min(at + _QUERIES, T)
        reach = start + until
        scores = torch.matmul(query[:, :, at:until].reshape(G, -1, D), dense(key[:, :reach]).transpose(1, 2))
        weights = weights_of(scores.view(G, group, until - at, reach), mask[at:until, :reach], softcap)
        out = torch.matmul(weights.view(G, -1, reach), dense(value[:, :reach]))
        yield at, until, out.view(G, group, until - at, -1)


def _attend_packed(
    step: Step, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention of a packed prefill, [1, H, T, D]: sequence by sequence; result [1, H, T, D]."""
    _, H, T, D = query.shape
    G = key.shape[1]
    out = query.new_empty(1, H, T, value.shape[-1])
    at = 0
    for slot, start, length in zip(step.slots, step.starts, step.lengths, strict=True):
        piece = slice(at, at + length)
        at += length
        own_key = key[0, :, piece] if step.fresh else key[slot]
        own_value = value[0, :, piece] if step.fresh else value[slot]
        grouped_is_faster = query.device.type == "cpu" and query.dtype == torch.bfloat16 and length in _GROUPED
        if mask is None and softcap is None and not grouped_is_faster:
            out[:, :, piece] = scaled_dot_product_attention(
                query[:, :, piece],
                own_key.repeat_interleave(H // G, dim=0)[None],
                own_value.repeat_interleave(H // G, dim=0)[None],
                scale=scaling,
                is_causal=True,
            )
            continue
        if mask is None:
            own_mask = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu_(1)
        else:
            own_mask = mask[0, 0, piece]
        grouped = (query[0, :, piece] * scaling).view(G, H // G, length, D)
        target = out[0, :, piece].view(G, H // G, length, -1)
        for first, until, part in _attend_piece(grouped, own_key, own_value, start, own_mask, softcap):
            target[:, :, first:until] = part
    return out


def _slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query`, [1, H, T, D] or [R, H, 1, D], over what `SlotCache.update` returned; heads follow tokens."""
    step = current()
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ModelError(f"this model's attention uses '{name}', which the local engine does not know")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not step.decode:
        return _attend_packed(step, query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    return attend_decode(step, query, key, value, attention_mask, scaling, softcap), None


AttentionInterface.register(IMPLEMENTATION, _slot_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _slot_mask)
