"""Samples of a model that is being trained: the engine on the trainer's own weights, used once and let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ...core.types import Completion, Cost, ModelShape, Prompt, Sampling
from ..meter import Account, Metered
from .engine import LocalEngine

__all__ = ["drawn", "replies"]


def drawn(
    model: Any,
    tokenizer: Any,
    asked: Sequence[tuple[Prompt, Sequence[int]]],
    sampling: Sampling | Sequence[Sampling],
    *,
    seed: int,
    shape: ModelShape,
) -> tuple[list[list[Completion]], Cost]:
    """Return for each prompt the samples with these indices, and what they cost in the role of the policy.

    `sampling` is one for all, or one for each prompt.

    Weights are shared, not copied; an adapter is in effect. Nothing is kept: the same weights, prompts and seed give the
    same samples bit for bit, whatever was drawn before. The model's mode, attention implementation and weights are left as
    they were. It may be called where an event loop runs already (a notebook).
    """
    began = time.perf_counter()
    account = Account()
    samplings = [sampling] * len(asked) if isinstance(sampling, Sampling) else sampling
    slots = max(1, sum(len(indices) for _, indices in asked))
    engine = LocalEngine(model, tokenizer, fingerprint="in training", shape=shape, slots=slots)
    metered = Metered(engine, account, "policy")

    async def all_of_them() -> list[list[Completion]]:
        with engine.together():
            calls = [
                asyncio.ensure_future(metered.generate(prompt, own, seed=seed, samples=indices))
                for (prompt, indices), own in zip(asked, samplings, strict=True)
            ]
            await asyncio.sleep(0)  # every call runs until it waits for its samples
        return await asyncio.gather(*calls)

    with ThreadPoolExecutor(1) as thread:  # an event loop of its own
        found = thread.submit(asyncio.run, all_of_them()).result()
    # The calls run together: their waits, added, would be many times the time that passed.
    return found, replace(account.total, seconds=time.perf_counter() - began)


def replies(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, shape: ModelShape
) -> tuple[list[Completion], Cost]:
    """Return one reply to each prompt, and what they cost; see `drawn`."""
    found, cost = drawn(model, tokenizer, [(prompt, (0,)) for prompt in prompts], sampling, seed=seed, shape=shape)
    return [completions[0] for completions in found], cost
