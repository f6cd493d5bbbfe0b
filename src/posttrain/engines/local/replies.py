"""Replies of a model that is being trained: the engine on the trainer's own weights, used once and let go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.types import Completion, Cost, ModelShape, Prompt, Sampling
from ...models.forward import causal_model
from ..meter import Account, Metered
from .engine import LocalEngine

__all__ = ["replies"]


def replies(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, shape: ModelShape
) -> tuple[list[Completion], Cost]:
    """Return one reply to each prompt, and what they cost. Weights are shared, not copied; an adapter is in effect.

    The model's mode, attention implementation and weights are left as they were. It may be called where an event loop
    runs already (a notebook).
    """
    account = Account()
    engine = Metered(
        LocalEngine(causal_model(model), tokenizer, fingerprint="in training", shape=shape, slots=max(1, len(prompts))),
        account,
        "policy",
    )

    async def all_of_them() -> list[Completion]:
        asked = (engine.generate(prompt, sampling, seed=seed) for prompt in prompts)
        return [found[0] for found in await asyncio.gather(*asked)]

    with ThreadPoolExecutor(1) as thread:  # an event loop of its own
        found = thread.submit(asyncio.run, all_of_them()).result()
    return found, account.total
