"""Log-probabilities of target tokens from hidden states, without ever holding the [tokens × vocabulary] matrix.

The output head turns a hidden state h into logits

    z = cap · tanh(s (W h + b) / cap)        (no cap: z = s (W h + b))

and log p(y) = z_y − log Σ_v exp z_v. Both functions below work through the tokens in chunks: only one chunk of logits
exists at a time, in the weights' type. All that follows the product is done in float32 (or wider), on a processor for as
many rows at a time as its cache holds, and the gradient takes the place of the logits.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = [
    "CACHE", "CHUNK", "KEPT", "Accumulator", "Head", "adjust", "recomputed", "token_logprobs", "token_logprobs_of_module",
    "weighted_logprob_sum",
]  # fmt: skip

CHUNK = 256  # tokens whose logits exist at once: 256 × 49152 × 2 bytes = 25 MB
CACHE = 2 << 20  # bytes of wide logits worked on at a time on a processor
KEPT = 64 << 20  # bytes of gradients that `weighted_logprob_sum` may keep from the forward to the backward pass
_BLOCK = 2048  # rows of a head's gradient that are computed at a time: the product is added while it is in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A linear output head: weights, and what some families do to its logits.

    `scale` is Cohere's `logit_scale` or the inverse of Granite's `logits_scaling`; `softcap` is Gemma-2's
    `final_logit_softcapping`. With a `sink_VD` (at least float32) the backward pass adds the weights' gradient to it and
    returns none: it is as large as the head, and making, rounding and adding it up anew for every micro-batch costs more
    than the product.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    sink_VD: Tensor | None = None


def adjust(logits_NV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Apply a head's scale and soft-cap, in at least float32."""
    z = _wide(logits_NV)
    if scale != 1.0:
        z = z * scale
    return softcap * torch.tanh(z / softcap) if softcap is not None else z


def token_logprobs(hidden_ND: Tensor, targets_N: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Return log p(target) of each token: `logps_N` in nats, at least float32.

    The backward pass computes each chunk's logits again: with p the softmax and g the incoming gradient,
    ∂/∂z = g (1[v = y] − p). Gradients reach the hidden states, the weights and the bias.
    """
    _check(hidden_ND, targets_N, head)
    apply: Any = _TokenLogprobs.apply
    logps: Tensor = apply(hidden_ND, targets_N, head.weight_VD, head.bias_V, head.sink_VD, head.scale, head.softcap, chunk)
    return logps


def weighted_logprob_sum(
    hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, head: Head, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return Σ_n w_n log p(y_n), a scalar that carries gradients, and the log-probabilities `logps_N`, which do not.

    The weights are constants, so the gradient is known in the forward pass and each chunk's logits are computed
    once instead of twice. Equals `(weights_N * token_logprobs(...)).sum()` in value and gradient.
    """
    _check(hidden_ND, targets_N, head)
    if weights_N.shape != targets_N.shape:
        raise ValueError(f"weights {tuple(weights_N.shape)} do not match targets {tuple(targets_N.shape)}")
    weights_N = weights_N.to(hidden_ND.device, torch.promote_types(hidden_ND.dtype, torch.float32))
    apply: Any = _WeightedSum.apply
    result: tuple[Tensor, Tensor] = apply(
        hidden_ND, targets_N, weights_N, head.weight_VD, head.bias_V, head.sink_VD, head.scale, head.softcap, chunk
    )
    return result


def token_logprobs_of_module(
    hidden_ND: Tensor,
    targets_N: Tensor,
    module: Callable[[Tensor], Tensor],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Return `logps_N` through a head that is more than a linear layer (an adapter sits on it): the module is called.

    Chunks are recomputed in the backward pass, so memory stays bounded; dropout inside draws the same mask again.
    """

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        z = adjust(module(hidden), scale, softcap)
        return z.gather(1, targets[:, None])[:, 0] - z.logsumexp(1)

    pieces = zip(torch.split(hidden_ND, chunk), torch.split(targets_N, chunk), strict=True)
    return torch.cat([recomputed(part, hidden, targets) for hidden, targets in pieces])


def recomputed(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """Return a function's value; the backward pass computes it again, so that nothing inside it is kept until then."""
    result: Tensor = checkpoint(function, *args, use_reentrant=False)
    return result


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _check(hidden_ND: Tensor, targets_N: Tensor, head: Head) -> None:
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1] or hidden_ND.shape[1] != head.weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_ND.shape)}, targets {tuple(targets_N.shape)} and head {tuple(head.weight_VD.shape)}"
            " must be [N, D], [N] and [V, D]"
        )


def _logps_and_dz(
    hidden_ND: Tensor,
    targets_N: Tensor,
    g_N: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    how: tuple[float, float | None],
) -> tuple[Tensor, Tensor]:
    """Return log p(y) and, when `g_N` is given, g · ∂log p(y) / ∂(W h + b) in the weights' type (else nothing of use)."""
    raw_NV = torch.nn.functional.linear(hidden_ND, weight, bias)
    rows = max(1, CACHE // (4 * raw_NV.shape[1])) if raw_NV.device.type == "cpu" else len(raw_NV)
    scale, softcap = how
    logps = []
    for at in range(0, len(raw_NV), max(rows, 1)):
        part, y = raw_NV[at : at + rows], targets_N[at : at + rows, None]
        z = adjust(part, scale, softcap)
        p = z.softmax(1)  # one kernel; the sum of exponentials is read off the largest: log Σ exp z = max z − log max p
        lse = z.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
        logps.append((z.gather(1, y) - lse)[:, 0])
        if g_N is None:
            continue
        g = g_N[at : at + rows, None].to(z.dtype)
        dz = p.mul_(-g)
        dz.scatter_add_(1, y, g)
        if softcap is not None:
            dz.mul_(1 - (z / softcap).square_())  # d cap·tanh(x/cap) / dx
        part.copy_(dz.mul_(scale) if scale != 1.0 else dz)
    return torch.cat(logps), raw_NV


def _add_product(sum_VD: Tensor, dz_NV: Tensor, hidden_ND: Tensor, factor: float = 1.0) -> None:
    """Add factor · dzᵀ h to a sum in a wider type, some rows at a time."""
    for at in range(0, len(sum_VD), _BLOCK if sum_VD.device.type == "cpu" else len(sum_VD)):
        block = slice(at, at + _BLOCK) if sum_VD.device.type == "cpu" else slice(None)
        sum_VD[block].add_(dz_NV[:, block].t() @ hidden_ND, alpha=factor)


class Accumulator:
    """Collects the three gradients chunk by chunk; those of the head are summed in at least float32."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, sink: Tensor | None, wanted: tuple[bool, bool, bool]
    ) -> None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.weight, self.sink = weight, sink if wanted[1] else None
        self.hidden_grad = torch.empty_like(hidden) if wanted[0] else None
        own = wanted[1] and self.sink is None
        self.weight_grad = torch.zeros_like(weight, dtype=wide) if own else self.sink
        self.bias_grad = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None

    def add(self, dz: Tensor, hidden: Tensor, at: slice, *, weight: bool = True) -> None:
        if self.bias_grad is not None:
            self.bias_grad += dz.sum(0, dtype=self.bias_grad.dtype)
        if self.hidden_grad is not None:
            self.hidden_grad[at] = dz @ self.weight
        if self.weight_grad is not None and weight:
            _add_product(self.weight_grad, dz, hidden)

    def grads(self, bias: Tensor | None, by: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        out = []
        weight_grad = None if self.sink is not None else self.weight_grad
        for grad, like in ((self.hidden_grad, self.weight), (weight_grad, self.weight), (self.bias_grad, bias)):
            if grad is not None and by is not None:
                grad = grad.mul_(by)  # the buffer is ours, and used once
            out.append(None if grad is None or like is None else grad.to(like.dtype))
        return out[0], out[1], out[2]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, targets, weight, bias, sink, scale, softcap, chunk):  # type: ignore[no-untyped-def]
        logps = [
            _logps_and_dz(h, y, None, weight, bias, (scale, softcap))[0]
            for h, y in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        ctx.save_for_backward(hidden, targets, weight, bias)
        ctx.sink, ctx.how, ctx.chunk = sink, (scale, softcap), chunk
        return torch.cat(logps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        hidden, targets, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        sums = Accumulator(hidden, weight, bias, ctx.sink, (needs[0], needs[2], needs[3]))
        for start in range(0, len(targets), ctx.chunk):
            at = slice(start, start + ctx.chunk)
            _, dz = _logps_and_dz(hidden[at], targets[at], grad[at], weight, bias, ctx.how)
            sums.add(dz, hidden[at], at)
        d_hidden, d_weight, d_bias = sums.grads(bias)
        return d_hidden, None, d_weight, d_bias, None, None, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, targets, weights, weight, bias, sink, scale, softcap, chunk):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad
        wanted = (needs[0], needs[3], needs[4])
        # The factor of the sink's share is known only in the backward pass: keep what is to be multiplied until then.
        later = sink is not None and needs[3] and len(targets) * weight.shape[0] * weight.element_size() <= KEPT
        sums = Accumulator(hidden, weight, bias, None, (wanted[0], wanted[1] and not later, wanted[2]))
        logps, kept = [], []
        for start in range(0, len(targets), chunk):
            at = slice(start, start + chunk)
            g = weights[at] if any(wanted) else None
            logp, dz = _logps_and_dz(hidden[at], targets[at], g, weight, bias, (scale, softcap))
            logps.append(logp)
            if g is not None:
                sums.add(dz, hidden[at], at)
                if later:
                    kept.append((at, dz))
        logps_N = torch.cat(logps)
        if later:
            ctx.save_for_backward(hidden)
        ctx.sums, ctx.bias, ctx.sink, ctx.kept = sums, bias, sink if needs[3] else None, kept
        ctx.mark_non_differentiable(logps_N)
        return (logps_N * weights).sum(), logps_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # type: ignore[no-untyped-def]
        for at, dz in ctx.kept:
            _add_product(ctx.sink, dz, ctx.saved_tensors[0][at], float(grad))
        if ctx.sink is not None and ctx.sums.weight_grad is not None:
            ctx.sink.add_(ctx.sums.weight_grad.mul_(grad))
            ctx.sums.weight_grad = None
        d_hidden, d_weight, d_bias = ctx.sums.grads(ctx.bias, by=grad)
        return d_hidden, None, None, d_weight, d_bias, None, None, None, None
