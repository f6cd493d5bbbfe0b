"""Teacher-forced log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...core.types import Completion, Usage
from .prefill import prefill
from .runner import Runner
from .sequence import ScoreRequest, decode_text
from .slots import SlotTable

__all__ = ["score"]

_LOGITS = 1 << 27  # numbers in the logits of one forward pass


def score(
    runner: Runner, table: SlotTable, slots: Mapping[int, ScoreRequest], *, reuse: bool, tokenizer: Any
) -> dict[int, Completion]:
    """Return by slot the continuation with log p(token | prompt, tokens before) under the model.

    The prompts go into the slots as for generation. Then the last prompt token and all but the last of the continuation
    are fed, many requests packed into a pass, a long one cut into several: whole logits are never larger than a bound.
    """
    found = prefill(runner, table, {slot: request.ids for slot, request in slots.items()}, reuse=reuse)
    limit = max(1, _LOGITS // runner.model.get_input_embeddings().weight.shape[0])
    pieces = [
        (slot, at, min(at + limit, len(request.continuation)))
        for slot, request in slots.items()
        for at in range(0, len(request.continuation), limit)
    ]
    logprobs: dict[int, list[float]] = {slot: [] for slot in slots}
    while pieces:
        group = [pieces.pop(0)]
        while pieces and sum(until - at for _, at, until in [*group, pieces[0]]) <= limit:
            group.append(pieces.pop(0))
        fed = [[slots[slot].ids[-1], *slots[slot].continuation][at:until] for slot, at, until in group]
        starts = [len(slots[slot].ids) - 1 + at for slot, at, _ in group]
        logits_TV = runner.extend([slot for slot, _, _ in group], starts, fed).float()
        targets = [token for slot, at, until in group for token in slots[slot].continuation[at:until]]
        index_T1 = torch.tensor(targets, device=logits_TV.device)[:, None]
        chosen_T = (logits_TV.gather(1, index_T1)[:, 0] - logits_TV.logsumexp(-1)).tolist()
        for slot, at, until in group:
            logprobs[slot] += chosen_T[: until - at]
            chosen_T = chosen_T[until - at :]
    scored = {}
    for slot, request in slots.items():
        held = [*request.ids, *request.continuation[:-1]]
        table.put(slot, held, len(held))
        values = tuple(logprobs[slot])
        n = len(request.continuation)
        scored[slot] = Completion(
            text=decode_text(tokenizer, request.continuation),
            tokens=request.continuation,
            logprobs=values,
            raw_logprobs=values,
            usage=Usage(calls=1, prompt=len(request.ids), cached=found[slot], scored=n),
        )
    return scored
