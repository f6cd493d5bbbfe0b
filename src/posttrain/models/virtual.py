"""Prefix and prompt tuning, through PEFT: trained positions in front of every sequence, the model itself frozen.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691): V embeddings in front of the tokens' own; V · D weights.
Prefix tuning (Li and Liang 2021, arXiv:2101.00190): V keys and values in every layer, without the paper's
reparametrisation by a feed-forward network; 2 · layers · V · (key-value heads · head size) weights.

Either way the sequence's token i stands at position V + i, and all that the rest of the model ever sees of the virtual
positions is their keys and values: `virtual_states`.

Both begin at V tokens drawn from the vocabulary: at their embeddings (as Lester et al. do, among other ways), or at the
keys and values that these tokens would have in front (Li and Liang begin at real words' activations too).
So a fresh one is the base with V random tokens in front. It is not the base.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import ModelError
from .quiet import quiet

__all__ = ["add_virtual", "virtual_states", "virtual_tokens"]


def add_virtual(model: Any, *, kind: Literal["prefix", "prompt"], tokens: int, seed: int) -> Any:
    """Return the model wrapped in a `PeftModel` with fresh virtual tokens; only they require gradients.

    Raises `ModelError` when the model's keys and values are not of one shape in all layers.
    """
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    if tokens < 1:
        raise ModelError(f"{kind} tuning needs at least 1 virtual token, not {tokens}")
    config = (PrefixTuningConfig if kind == "prefix" else PromptTuningConfig)(
        num_virtual_tokens=tokens, task_type="CAUSAL_LM"
    )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_V = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        ids_V = ids_V.to(model.device)
        embeddings_VD = model.get_input_embeddings()(ids_V)
        try:
            initial = _packed(_states(model, embeddings_VD[None])) if kind == "prefix" else embeddings_VD
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise _unfit(model, kind, str(error).splitlines()[0]) from None
        try:
            with torch.random.fork_rng(), quiet():
                adapted = get_peft_model(model, config)
        except ValueError as error:
            raise _unfit(model, kind, str(error).splitlines()[0]) from None
        weight = adapted.prompt_encoder[adapted.active_adapter].embedding.weight
        if weight.shape != initial.shape:
            raise _unfit(model, kind, f"PEFT expects {tuple(weight.shape)} numbers, its layers have {tuple(initial.shape)}")
        weight.copy_(initial)
    return adapted


def virtual_tokens(model: Any) -> int:
    """Return how many virtual positions stand in front of every sequence: 0 for a model without such an adapter."""
    configs = getattr(model, "peft_config", None) or {}
    return sum(c.num_virtual_tokens for c in configs.values() if getattr(c, "is_prompt_learning", False))


@torch.no_grad()
def virtual_states(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of the virtual positions, layer by layer: (`keys_GVD`, `values_GVD`).

    `model` is a `PeftModel` with prefix or prompt tuning. Raises `ModelError` for other kinds of virtual tokens.
    """
    kind = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type))
    base, tokens = model.get_base_model(), virtual_tokens(model)
    if kind == "PREFIX_TUNING":
        found = [(layer.keys, layer.values) for layer in model.get_prompt(batch_size=1).layers]
    elif kind == "PROMPT_TUNING":
        embeddings_BVD = model.get_prompt(batch_size=1)
        found = _states(base, embeddings_BVD.to(base.get_input_embeddings().weight.dtype))
    else:
        raise ModelError(f"virtual tokens of the kind {kind} are not known; only prefix and prompt tuning are")
    if any(keys.shape[2] != tokens or values.shape[2] != tokens for keys, values in found):
        raise ModelError(
            f"{tokens} virtual tokens do not fit the attention window of {type(base).__name__}; use fewer virtual_tokens"
        )
    return [(keys[0], values[0]) for keys, values in found]


def _states(model: Any, embeddings_BVD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values [1, G, V, D] that the positions of these embeddings have in every layer."""
    from transformers import DynamicCache

    cache = DynamicCache()  # without the configuration: every layer keeps all positions, whatever its window
    model.get_decoder()(inputs_embeds=embeddings_BVD, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _packed(states: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Lay keys and values out as PEFT keeps them: one row for each virtual token, [V, layers · 2 · G · D]."""
    stacked = torch.stack([kept[0] for pair in states for kept in pair])  # [2 · layers, G, V, D]
    return stacked.permute(2, 0, 1, 3).flatten(1)


def _unfit(model: Any, kind: str, why: str) -> ModelError:
    return ModelError(f"{type(model).__name__} cannot take {kind} tuning ({why}); use adapter=lora instead")
