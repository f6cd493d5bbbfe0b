"""Sums of any function of the logits, without ever holding the [tokens × vocabulary] matrix.

A distillation loss needs a token's whole distribution, not only the probability of one target. So the function is handed
the logits, adjusted and at least float32, of a chunk of tokens at a time; its gradient by them is taken on the spot and goes
into the gradients of hidden states and head. With constant weights all is known in the forward pass, and each chunk's
logits are computed once.

Shapes: N tokens, D hidden size, V vocabulary, C values per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .logprobs import Accumulator, Head, adjust, recomputed

__all__ = ["CHUNK", "LogitValues", "weighted_logit_sum", "weighted_logit_sum_of_module"]

CHUNK = 64  # tokens whose logits exist at once, in some ten copies: 64 × 49152 × 4 bytes = 13 MB each

LogitValues = Callable[[slice, Tensor], Tensor]  # (which tokens, their logits [n, V]) -> values [n, C]


def weighted_logit_sum(
    hidden_ND: Tensor, values: LogitValues, weights_C: Tensor, head: Head, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return Σ_n Σ_c w_c v_c(z_n), a scalar that carries gradients, and the values `values_NC`, which do not.

    `values(at, z)` must be differentiable in z and depend on one token's logits for one token's values.
    Raises `ValueError` for shapes that do not fit.
    """
    _check(hidden_ND, weights_C)
    if hidden_ND.shape[1] != head.weight_VD.shape[1]:
        raise ValueError(f"hidden {tuple(hidden_ND.shape)} and head {tuple(head.weight_VD.shape)} must be [N, D] and [V, D]")
    apply: Any = _LogitSum.apply
    result: tuple[Tensor, Tensor] = apply(
        hidden_ND, head.weight_VD, head.bias_V, values, weights_C, head, chunk, torch.is_grad_enabled()
    )
    return result


def weighted_logit_sum_of_module(
    hidden_ND: Tensor,
    values: LogitValues,
    weights_C: Tensor,
    module: Callable[[Tensor], Tensor],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Do the same through a head that is more than a linear layer: the module is called, twice for each chunk."""
    _check(hidden_ND, weights_C)
    found = []
    for start in range(0, len(hidden_ND), chunk):
        at = slice(start, start + chunk)
        found.append(recomputed(lambda h, at=at: values(at, adjust(module(h), scale, softcap)), hidden_ND[at]))
    values_NC = torch.cat(found)
    return (values_NC * weights_C.to(values_NC)).sum(), values_NC.detach()


def _check(hidden_ND: Tensor, weights_C: Tensor) -> None:
    if hidden_ND.ndim != 2 or not len(hidden_ND) or weights_C.ndim != 1:
        raise ValueError(
            f"hidden {tuple(hidden_ND.shape)} and weights {tuple(weights_C.shape)} must be [N, D] and [C], N > 0"
        )


class _LogitSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, values, weights, head, chunk, training):  # type: ignore[no-untyped-def]
        wanted = tuple(training and needed for needed in ctx.needs_input_grad[:3])
        sums = Accumulator(hidden, weight, bias, None, wanted)
        found = []
        for start in range(0, len(hidden), chunk):
            at = slice(start, start + chunk)
            raw_NV = torch.nn.functional.linear(hidden[at], weight, bias)
            with torch.set_grad_enabled(any(wanted)):
                raw_NV.requires_grad_(any(wanted))
                values_NC = values(at, adjust(raw_NV, head.scale, head.softcap))
                if any(wanted):
                    weighted = (values_NC * weights.to(values_NC)).sum()
                    (dz_NV,) = torch.autograd.grad(weighted, raw_NV)
                    sums.add(dz_NV, hidden[at], at)
            found.append(values_NC.detach())
        values_NC = torch.cat(found)
        ctx.sums, ctx.bias, ctx.sink = sums, bias, head.sink_VD if wanted[1] else None
        ctx.mark_non_differentiable(values_NC)
        return (values_NC * weights.to(values_NC)).sum(), values_NC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # type: ignore[no-untyped-def]
        if ctx.sink is not None and ctx.sums.weight_grad is not None:
            ctx.sink.add_(ctx.sums.weight_grad.mul_(grad))
            ctx.sums.weight_grad = None
        d_hidden, d_weight, d_bias = ctx.sums.grads(ctx.bias, by=grad)
        return d_hidden, d_weight, d_bias, None, None, None, None, None
