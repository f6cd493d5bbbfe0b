"""Log-probabilities of target tokens from hidden states, without ever holding the [tokens × vocabulary] matrix.

The output head turns a hidden state h into logits

    z = cap · tanh(s (W h + b) / cap)        (no cap: z = s (W h + b))

and log p(y) = z_y − log Σ_v exp z_v. Both functions below work through the tokens in chunks: only one chunk of logits
exists at a time, in float32 (or wider), and no chunk survives the forward pass.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["CHUNK", "Head", "token_logprobs", "token_logprobs_of_module", "weighted_logprob_sum"]

CHUNK = 256  # tokens whose logits exist at once: 256 × 49152 × 4 bytes = 50 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A linear output head: weights, and what some families do to its logits.

    `scale` is Cohere's `logit_scale` or the inverse of Granite's `logits_scaling`; `softcap` is Gemma-2's
    `final_logit_softcapping`.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits in at least float32: the product in the weights' type, all that follows in float32."""
        return adjust(torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V), self.scale, self.softcap)


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
    logps: Tensor = apply(hidden_ND, targets_N, head.weight_VD, head.bias_V, head.scale, head.softcap, chunk)
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
        hidden_ND, targets_N, weights_N, head.weight_VD, head.bias_V, head.scale, head.softcap, chunk
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
    return torch.cat([_recomputed(part, hidden, targets) for hidden, targets in pieces])


def _recomputed(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
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


def _logps_and_dz(z_NV: Tensor, targets_N: Tensor, g_N: Tensor | None, scale: float, softcap: float | None) -> Any:
    """Return log p(y) and, when `g_N` is given, g · ∂log p(y) / ∂(W h + b); `z_NV` is overwritten."""
    z_y = z_NV.gather(1, targets_N[:, None])
    lse = z_NV.logsumexp(1, keepdim=True)
    logps = (z_y - lse)[:, 0]
    if g_N is None:
        return logps, None
    slope = None if softcap is None else 1 - (z_NV / softcap).square_()  # d cap·tanh(x/cap) / dx
    dz = z_NV.sub_(lse).exp_().mul_(-g_N[:, None])
    dz.scatter_add_(1, targets_N[:, None], g_N[:, None].to(dz.dtype))
    if slope is not None:
        dz.mul_(slope)
    if scale != 1.0:
        dz.mul_(scale)
    return logps, dz


class _Accumulator:
    """Collects the three gradients chunk by chunk; those of the head are summed in at least float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]) -> None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.weight = weight
        self.hidden_grad = torch.empty_like(hidden) if wanted[0] else None
        self.weight_grad = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.bias_grad = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None

    def add(self, dz: Tensor, hidden: Tensor, at: slice) -> None:
        if self.bias_grad is not None:
            self.bias_grad += dz.sum(0)
        dz = dz.to(self.weight.dtype)
        if self.hidden_grad is not None:
            self.hidden_grad[at] = dz @ self.weight
        if self.weight_grad is not None:
            self.weight_grad += dz.t() @ hidden

    def grads(self, bias: Tensor | None, by: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        out = []
        for grad, like in ((self.hidden_grad, self.weight), (self.weight_grad, self.weight), (self.bias_grad, bias)):
            if grad is not None and by is not None:
                grad = grad.mul_(by)  # the buffer is ours, and used once
            out.append(None if grad is None or like is None else grad.to(like.dtype))
        return out[0], out[1], out[2]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, targets, weight, bias, scale, softcap, chunk):  # type: ignore[no-untyped-def]
        head = Head(weight_VD=weight, bias_V=bias, scale=scale, softcap=softcap)
        logps = []
        for h, y in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logps.append(_logps_and_dz(head.logits(h), y, None, scale, softcap)[0])
        ctx.save_for_backward(hidden, targets, weight, bias)
        ctx.head, ctx.chunk = (scale, softcap), chunk
        return torch.cat(logps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        hidden, targets, weight, bias = ctx.saved_tensors
        scale, softcap = ctx.head
        head = Head(weight_VD=weight, bias_V=bias, scale=scale, softcap=softcap)
        needs = ctx.needs_input_grad
        sums = _Accumulator(hidden, weight, bias, (needs[0], needs[2], needs[3]))
        for start in range(0, len(targets), ctx.chunk):
            at = slice(start, start + ctx.chunk)
            _, dz = _logps_and_dz(head.logits(hidden[at]), targets[at], grad[at], scale, softcap)
            sums.add(dz, hidden[at], at)
        d_hidden, d_weight, d_bias = sums.grads(bias)
        return d_hidden, None, d_weight, d_bias, None, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, targets, weights, weight, bias, scale, softcap, chunk):  # type: ignore[no-untyped-def]
        head = Head(weight_VD=weight, bias_V=bias, scale=scale, softcap=softcap)
        needs = ctx.needs_input_grad
        wanted = (needs[0], needs[3], needs[4])
        sums = _Accumulator(hidden, weight, bias, wanted)
        logps = []
        for start in range(0, len(targets), chunk):
            at = slice(start, start + chunk)
            g = weights[at] if any(wanted) else None
            logp, dz = _logps_and_dz(head.logits(hidden[at]), targets[at], g, scale, softcap)
            logps.append(logp)
            if dz is not None:
                sums.add(dz, hidden[at], at)
        logps_N = torch.cat(logps)
        ctx.sums, ctx.bias = sums, bias
        ctx.mark_non_differentiable(logps_N)
        return (logps_N * weights).sum(), logps_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # type: ignore[no-untyped-def]
        d_hidden, d_weight, d_bias = ctx.sums.grads(ctx.bias, by=grad)
        return d_hidden, None, None, d_weight, d_bias, None, None, None
