"""From one value per token to one loss: masked sums over explicit, global counts.

A loss is normalised by counts over the whole optimiser step (all micro-batches, all processes), given by the caller.
So each micro-batch's result is its exact share: shares add up, and neither micro-batch size, accumulation nor the number
of processes changes the gradient. A mean of means does (transformers issue #35787, TRL #2175).

Shapes: N trained tokens of a micro-batch, laid end to end; S sequences; `owner_N` is each token's sequence, in [0, S).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["constant_mean", "sequence_mean", "sequence_sums", "token_mean"]


def sequence_sums(values_N: Tensor, owner_N: Tensor, sequences: int) -> Tensor:
    """Return Σ over each sequence's tokens: `sums_S`; 0 for a sequence without tokens."""
    if values_N.shape != owner_N.shape:
        raise ValueError(f"values {tuple(values_N.shape)} do not match owners {tuple(owner_N.shape)}")
    return values_N.new_zeros(sequences).index_add(0, owner_N, values_N)


def token_mean(values_N: Tensor, *, tokens: float) -> Tensor:
    """Return Σ_n x_n / tokens: every token of the optimiser step weighs the same (SFT; DAPO)."""
    return values_N.sum() / _positive(tokens, "tokens")


def sequence_mean(values_N: Tensor, owner_N: Tensor, *, in_micro_batch: int, sequences: float) -> Tensor:
    """Return Σ_s mean(x of s) / sequences: every sequence weighs the same (GRPO as published).

    `in_micro_batch` is S, `sequences` the number in the whole optimiser step. A sequence without tokens adds 0.
    """
    lengths_S = sequence_sums(torch.ones_like(values_N), owner_N, in_micro_batch).clamp(min=1)
    return (sequence_sums(values_N, owner_N, in_micro_batch) / lengths_S).sum() / _positive(sequences, "sequences")


def constant_mean(values_N: Tensor, *, constant: float, sequences: float) -> Tensor:
    """Return Σ_n x_n / (constant · sequences): a fixed length instead of the sequence's own (Dr. GRPO, 2503.20783)."""
    return values_N.sum() / (_positive(constant, "constant") * _positive(sequences, "sequences"))


def _positive(count: float, name: str) -> float:
    if not count > 0:
        raise ValueError(f"{name} must be positive, got {count}: nothing in this optimiser step is trained")
    return count
