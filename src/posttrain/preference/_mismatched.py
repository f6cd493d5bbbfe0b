"""KTO's mismatched responses: to each prompt of an optimiser step the response to another prompt of the same step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from ..training.batching import step_rows, steps_per_epoch

__all__ = ["partners", "steps_of"]


def partners(prompts: Sequence[Hashable]) -> dict[int, int]:
    """Return for each response of a step the one that is put to its prompt instead: of another prompt, each at most once.

    All have one unless a prompt has more than half of the responses: then some are left out, for which none is left.
    The choice is a function of the step's order, which the seed decides.
    """
    if not prompts:
        return {}
    first = {prompt: at for at, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(prompts)), key=lambda at: first[prompts[at]])  # those of a prompt stand together,
    shift = max(Counter(prompts).values())  # so that a shift by the largest group leads out of each
    pairs = ((order[at], order[(at + shift) % len(order)]) for at in range(len(order)))
    return {one: other for one, other in pairs if prompts[one] != prompts[other]}


def steps_of(rows: int, *, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the rows of every optimiser step of a training run, in order, as the loop draws them."""
    total = epochs * steps_per_epoch(rows, batch_size)
    return [step_rows(step, rows=rows, batch_size=batch_size, seed=seed) for step in range(total)]
