"""How likely a model finds each of a few labels as its next words."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from ..core.protocols import Engine
from ..core.types import Completion, Prompt

__all__ = ["label_probabilities"]


async def label_probabilities(engine: Engine, prompt: Prompt, labels: Sequence[str]) -> tuple[list[float], float]:
    """Return the probability of each label among them, and the probability that the model gives to all of them together.

    p_i = P(label_i) / Σ_j P(label_j), P(label) = Π_t p(token_t | prompt, tokens before). Where the tokens of one label begin
    those of another ("1", "10"), the longer one's probability is taken off the shorter one's: it is not the shorter one's.
    """
    scored = await asyncio.gather(*(engine.score(prompt, label) for label in labels))
    logs = [math.fsum(completion.raw_logprobs or ()) for completion in scored]
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    own = [
        max(0.0, weights[i] - math.fsum(weights[j] for j, longer in enumerate(scored) if _begins(shorter, longer, scored)))
        for i, shorter in enumerate(scored)
    ]
    total = math.fsum(own)
    return [weight / total for weight in own], min(1.0, total * math.exp(top))


def _begins(shorter: Completion, longer: Completion, among: Sequence[Completion]) -> bool:
    """Return whether `longer` goes on after `shorter`, and no label in between does (whose share it already lowers)."""
    if not _extends(shorter, longer):
        return False
    return not any(_extends(shorter, between) and _extends(between, longer) for between in among)


def _extends(start: Completion, whole: Completion) -> bool:
    return len(start.tokens) < len(whole.tokens) and whole.tokens[: len(start.tokens)] == start.tokens
