"""What items cost: the operations of groups that share a prefix, and of an adapter's virtual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.types import ModelShape
from ..models.adapters import unmerged
from ..models.virtual import virtual_tokens
from ..stats.flops import forward_flops, train_flops
from .step import Work

__all__ = ["group_work", "virtual_flops"]


def group_work(
    shape: ModelShape, *, prefix: int, branches: Sequence[int], logits: int, frozen_backbone: bool, backward: bool = True
) -> Work:
    """Return what a group costs when its `prefix` is computed once for all `branches` (token counts after the prefix)."""
    ahead = [
        forward_flops(shape, start=prefix, tokens=n, logits=0) - forward_flops(shape, start=0, tokens=n, logits=0)
        for n in branches
    ]  # attention of the branches to the prefix
    tokens = prefix + sum(branches)
    if not backward:
        parts = [forward_flops(shape, start=0, tokens=n, logits=0) for n in (prefix, *branches)]
        return Work(tokens=tokens, flops=sum(parts) + sum(ahead) + 2.0 * shape.head_params * logits)
    parts = [train_flops(shape, tokens=n, logits=0, frozen_backbone=frozen_backbone) for n in (prefix, *branches)]
    heads = train_flops(shape, tokens=0, logits=logits, frozen_backbone=frozen_backbone)
    return Work(tokens=tokens, flops=sum(parts) + 3.0 * sum(ahead) + heads)


def virtual_flops(model: Any, shape: ModelShape, tokens: int, *, backward: bool) -> float:
    """Return the FLOPs that virtual tokens in front add to one sequence of `tokens`.

    Attention of the tokens to the virtual ones, three times with a backward pass; the virtual tokens of prompt tuning also
    run through the frozen layers, as any other tokens do; those of prefix tuning are not computed.
    """
    ahead = virtual_tokens(model)
    if not ahead:
        return 0.0
    attended = forward_flops(shape, start=ahead, tokens=tokens, logits=0) - forward_flops(
        shape, start=0, tokens=tokens, logits=0
    )
    own = 0.0
    if unmerged(model) == "prompt":
        own = (
            train_flops(shape, tokens=ahead, logits=0, frozen_backbone=True)
            if backward
            else forward_flops(shape, start=0, tokens=ahead, logits=0)
        )
    return own + (3.0 if backward else 1.0) * attended
