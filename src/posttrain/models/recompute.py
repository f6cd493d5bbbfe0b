"""Activation checkpointing: layers keep their inputs only and are computed again in the backward pass.

Chen et al. 2016 (arXiv 1604.06174): memory of one layer's activations plus one hidden state a layer, for about a third more
operations. Values and gradients do not change; dropout draws the same masks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from ..core.errors import ConfigError
from .forward import causal_model, text_config

__all__ = ["recompute_activations"]


def recompute_activations(model: Any) -> None:
    """Let every layer of a model compute its activations again in the backward pass, in training mode.

    The packed layout's attention is chosen by the configuration while the forward pass runs, so the recomputation, which
    comes later, chooses it again. Raises `ConfigError` when the architecture cannot.
    """
    causal = causal_model(model)
    if not getattr(causal, "supports_gradient_checkpointing", False):
        raise ConfigError(f"{type(causal).__name__} cannot recompute its activations: leave activation_checkpointing out")
    config = text_config(causal.config)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _attention(config, config._attn_implementation)

    again = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    causal._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)


@contextmanager
def _attention(config: Any, implementation: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before
