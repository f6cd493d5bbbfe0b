"""Norms and gated layers that keep less for the backward pass; values stay what the model's own code gives.

Autograd keeps every intermediate of an elementwise chain. Of RMSNorm it keeps the input again in float32, of SwiGLU the
sigmoid-weighted gate: both follow from what is kept anyway, by operations that cost next to nothing beside the products.
A module is changed only where its values are exactly those of the formula, tried with weights of the formula's own choosing.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

__all__ = ["keep_less", "rms_norm", "swiglu"]


def keep_less(model: Any) -> int:
    """Let the norms and gated layers of a model keep less for a backward pass; returns how many were changed."""
    changed = 0
    for module in model.modules():
        for fits, lean in ((_is_rms_norm, _norm_forward), (_is_swiglu, _gated_forward)):
            if "forward" not in vars(module) and fits(module):
                module._own_forward = module.forward
                module.forward = types.MethodType(lean, module)  # a method, so that a copy of the model has its own
                changed += 1
    return changed


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return w · x / √(mean(x²) + ε) over the last dimension, computed in float32 and rounded before the product with w.

    Kept for the backward pass: x and a number a row. With n = x/√(…): ∂x = (dn − n · mean(dn · n)) / √(…), dn = w · dy.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4; the rounding is that of transformers' Llama.
    """
    apply: Any = _RmsNorm.apply
    found: Tensor = apply(x, weight, epsilon)
    return found


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up. Kept for the backward pass: both inputs alone (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    apply: Any = _SwiGlu.apply
    found: Tensor = apply(gate, up)
    return found


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed, dy = x.float().mul_(scale), dy.float()
        d_weight = d_x = None
        if ctx.needs_input_grad[1]:
            d_weight = (dy * normed.to(x.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            d_normed = dy * weight
            shift = (d_normed * normed).mean(-1, keepdim=True)
            d_x = d_normed.sub_(normed.mul_(shift)).mul_(scale).to(x.dtype)
        return d_x, d_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), silu(gate).mul_(dy)


def _norm_forward(self: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    if more or named or not torch.is_grad_enabled():  # a norm that is given a gate computes something else
        own: Tensor = self._own_forward(x, *more, **named)
        return own
    return rms_norm(x, self.weight, _epsilon(self))


def _gated_forward(self: Any, x: Tensor, *more: Any, **named: Any) -> Any:
    if more or named or not torch.is_grad_enabled():
        return self._own_forward(x, *more, **named)
    found: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
    return found


def _epsilon(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return False
    if not (hasattr(module, "variance_epsilon") or isinstance(getattr(module, "eps", None), float)):
        return False
    drawn = torch.Generator().manual_seed(0)
    x, tried = (torch.randn(*shape, generator=drawn).to(weight) for shape in ((3, len(weight)), (len(weight),)))
    try:  # with other weights than its own: at 1 or at 0 different formulas agree
        own = torch.func.functional_call(module, {"weight": tried}, (x,))
    except (TypeError, ValueError, RuntimeError):
        return False
    return torch.equal(own, rms_norm(x, tried, _epsilon(module)))


@torch.no_grad()
def _is_swiglu(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) for part in parts):
        return False
    gate, up, down = parts
    width, weight = getattr(gate, "in_features", None), getattr(gate, "weight", None)
    if width is None or weight is None or not weight.is_floating_point():
        return False
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(weight)
    training = module.training
    module.eval()
    try:
        return torch.equal(module(x), down(swiglu(gate(x), up(x))))  # type: ignore[misc]
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        module.train(training)
