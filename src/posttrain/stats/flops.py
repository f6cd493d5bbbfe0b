"""Floating-point operations of a decoder, from its shape: a multiplication and an addition count as two."""

from __future__ import annotations

from ..core.types import ModelShape

__all__ = ["forward_flops", "train_flops"]


def forward_flops(shape: ModelShape, *, start: int, tokens: int, logits: int) -> float:
    """Return the FLOPs of processing `tokens` tokens when `start` are already in the cache.

    `2·M·tokens + 2·H·logits + 4·A·Σ_{i<tokens} (start + i + 1)` with M `matmul_params`, H `head_params`, A
    `attention_width`, and `logits` the number of positions that go through the output head. The last term is causal
    attention: the token at position p meets p + 1 keys in `QKᵀ` and again in the sum over values. Norms, activations,
    softmax and rotary embedding are left out (well below 1 % at the usual widths).
    Source: Kaplan et al. 2020 (arXiv 2001.08361), table 1, with the attention term per position.
    """
    _check(start=start, tokens=tokens, logits=logits)
    return _linear(shape, tokens, logits) + _attention(shape, start, tokens)


def train_flops(shape: ModelShape, *, tokens: int, logits: int, frozen_backbone: bool = False) -> float:
    """Return the FLOPs of one forward and backward pass over one sequence of `tokens` tokens, `logits` of them trained.

    Three times the forward: the backward computes a gradient for each of the two factors of every product. With
    `frozen_backbone` (LoRA, head-only probes on a live graph) the weights' gradients are not computed, so that linear
    layers cost twice their forward; attention has no weights and keeps its three. The adapters' own small products
    and recomputation under activation checkpointing are left out.
    """
    _check(tokens=tokens, logits=logits)
    linear = 2.0 if frozen_backbone else 3.0
    return linear * _linear(shape, tokens, logits) + 3.0 * _attention(shape, 0, tokens)


def _linear(shape: ModelShape, tokens: int, logits: int) -> float:
    return 2.0 * shape.matmul_params * tokens + 2.0 * shape.head_params * logits


def _attention(shape: ModelShape, start: int, tokens: int) -> float:
    return 4.0 * shape.attention_width * (start * tokens + tokens * (tokens + 1) // 2)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}: a count cannot be negative")
