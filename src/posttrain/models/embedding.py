"""The embedding's gradient without a table of the vocabulary's size: only the rows of the batch's tokens are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["collected_embedding"]


@contextmanager
def collected_embedding(module: Any, sink: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a plain embedding add its gradient to `sink(weight)` in the backward pass of what is computed in this context.

    An embedding that does more than look rows up (scaling, an adapter), or a weight without a sink, is left alone.
    """
    plain = type(module) is nn.Embedding and module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)
    if not plain or "forward" in module.__dict__ or not module.weight.requires_grad or sink(module.weight) is None:
        yield
        return
    apply: Any = _Collected.apply
    module.__dict__["forward"] = lambda ids: apply(ids, module.weight, module.padding_idx, sink)
    try:
        yield
    finally:
        del module.__dict__["forward"]


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids, weight, padding, sink):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding, ctx.sink = weight, padding, sink
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        ids, sums = ctx.saved_tensors[0].flatten(), ctx.sink(ctx.weight)
        rows = grad.flatten(0, -2).to(sums.dtype)
        if ctx.padding is not None:  # as nn.Embedding: the padding token's row is not trained
            rows = rows * (ids != ctx.padding)[:, None]
        sums.index_add_(0, ids, rows)
        return None, None, None, None
