"""What the FLOPs formulas need to know of a model, counted from its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.errors import ModelError
from ..core.types import ModelShape

__all__ = ["context_of", "shape_of"]


def shape_of(model_or_config: Any, *, head: nn.Module | None = None) -> ModelShape:
    """Return the shape of a causal language model, or of the one a transformers configuration describes.

    `head` is the output head of a model that is no language model (a classifier's).

    `parameters` counts every weight once, also a head tied to the embedding. `matmul_params` counts the matrices that a
    token is multiplied with: no embedding tables, no head (`head_params`, counted whether tied or not), no norms or
    biases; of a mixture's experts the share that one token visits.
    """
    model = model_or_config
    if not isinstance(model, nn.Module):
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_or_config)
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings() if head is None else head
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: a causal language model is needed")
    matrices = [parameter for parameter in head.parameters() if parameter.ndim >= 2]
    apart = {id(matrix) for matrix in matrices}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            apart.update(id(parameter) for parameter in module.parameters())
    visited = _expert_share(config)
    matmul = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in apart:
            matmul += parameter.numel() * (visited if ".experts." in name else 1.0)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matmul_params=round(matmul),
        head_params=sum(matrix.numel() for matrix in matrices),
        layers=config.num_hidden_layers,
        attention_width=config.num_hidden_layers * config.num_attention_heads * head_dim,
    )


def context_of(config: Any) -> int | None:
    """Return the context in tokens that a transformers configuration states, None if it states none."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    stated = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(stated) if stated else None


def _expert_share(config: Any) -> float:
    """Return the share of a mixture's experts that one token visits (1 for a dense model)."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0
