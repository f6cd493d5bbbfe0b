"""What a Llama does inside while it reads its own text: the statistics that decide what a smaller one keeps.

The text is the model's own, written from its start token at temperature 1: no data are needed, and it is of the kind that
the model was trained on (Williams et al. 2024, 2410.17170).

Shapes: B texts, T tokens of all texts, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .shape import context_of

__all__ = ["NORMS", "OUTPUTS", "Statistics", "measure", "texts_written"]

TEXTS, LENGTH = 16, 128  # so many texts of so many tokens
NORMS = ("input_layernorm", "post_attention_layernorm")
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Mean squares, `[C]`, by the module that reads them: `layers.3.input_layernorm`, `norm`, `layers.3.mlp.down_proj`.

    Of a norm, of its normalised input x̂ = x / rms(x); of an output projection, of its input.
    """

    squares: dict[str, Tensor]
    texts_BT: Tensor


@torch.no_grad()
def measure(model: Any, layers: Sequence[int], *, seed: int) -> Statistics:
    """Return the statistics of these layers and of the last norm, over text that the model writes."""
    ids_BT = texts_written(model, seed=seed)
    found = Statistics(squares={}, texts_BT=ids_BT)

    def noting(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            h_TC = inputs[0].flatten(0, -2).float()
            if not name.endswith(OUTPUTS):
                h_TC = h_TC * h_TC.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
            found.squares[name] = h_TC.square().mean(0)

        return hook

    named = [f"layers.{layer}.{part}" for layer in layers for part in (*NORMS, *OUTPUTS)]
    with ExitStack() as hooks:
        for name in [*named, "norm"]:
            hooks.callback(model.model.get_submodule(name).register_forward_pre_hook(noting(name)).remove)
        model.model(input_ids=ids_BT, use_cache=False)
    return found


@torch.no_grad()
def texts_written(model: Any, *, seed: int) -> Tensor:
    """Return `ids_BT`: texts drawn from the model itself, each begun by its start token."""
    config = model.config
    start = next((i for i in (config.bos_token_id, *_listed(config.eos_token_id)) if i is not None), 0)
    steps = min(LENGTH, context_of(config) or LENGTH) - 1
    draws_TB = torch.rand(steps, TEXTS, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    ids_BT = torch.full((TEXTS, 1), start, device=model.device)
    past = None
    for step in range(steps):
        out = model(input_ids=ids_BT[:, -1:], past_key_values=past, use_cache=True)
        past, sums_BV = out.past_key_values, out.logits[:, -1].double().softmax(-1).cumsum(-1)
        drawn_B1 = torch.searchsorted(sums_BV, draws_TB[step].to(sums_BV) * sums_BV[:, -1:])
        ids_BT = torch.cat([ids_BT, drawn_B1.clamp(max=sums_BV.shape[1] - 1)], dim=1)
    return ids_BT


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
