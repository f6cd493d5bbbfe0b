"""Putting prompts into slots: leading tokens that a slot has are copied, the rest is computed in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .runner import Runner
from .slots import SlotTable, common_prefix

__all__ = ["prefill"]

_PASS_TOKENS = 2048  # tokens of one forward pass
_WORTH_WAITING = 8  # leading tokens shared with another new prompt for which a prompt waits until that one is computed

Ids = npt.NDArray[np.int64]


def prefill(runner: Runner, table: SlotTable, prompts: Mapping[int, Sequence[int]], *, reuse: bool) -> dict[int, int]:
    """Compute keys and values of all but the last token of each prompt; return by slot how many were found, not computed.

    The last token is left to the step that needs its logits. New prompts that share leading tokens with each other go
    in waves: first one of them, then the others from its slot.
    """
    waiting: dict[int, Ids] = {slot: np.asarray(ids, dtype=np.int64) for slot, ids in prompts.items()}
    found: dict[int, int] = {}
    while waiting:
        wave: dict[int, tuple[int, int]] = {}  # slot -> (source, shared tokens)
        leaders: list[Ids] = []
        for slot, ids in waiting.items():
            source, shared = table.longest(ids[:-1]) if reuse else (slot, 0)
            if reuse and max((common_prefix(ids[:-1], other) for other in leaders), default=0) >= shared + _WORTH_WAITING:
                continue
            leaders.append(ids[:-1])
            wave[slot] = (source, shared)
        found |= _fill(runner, table, waiting, wave)
        for slot in wave:
            del waiting[slot]
    return found


def _fill(
    runner: Runner, table: SlotTable, prompts: Mapping[int, Ids], wave: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    wanted = {source for slot, (source, shared) in wave.items() if shared and source != slot}
    copies: dict[tuple[int, int], list[int]] = {}
    starts: dict[int, int] = {}
    for slot, (source, shared) in wave.items():
        # A slot whose old content another prompt copies must not be overwritten by a copy of its own: it starts afresh.
        starts[slot] = 0 if slot in wanted and source != slot else shared
        if starts[slot] and source != slot:
            copies.setdefault((source, shared), []).append(slot)
    for (source, shared), targets in copies.items():
        runner.cache.copy(source, targets, shared)
    for slot, start in starts.items():
        table.put(slot, prompts[slot], start)
    todo = [slot for slot, start in starts.items() if len(prompts[slot]) - 1 > start]
    todo.sort(key=lambda slot: (starts[slot] > 0, len(prompts[slot]) - starts[slot]))
    for group in _passes(todo, starts, prompts):
        new = [prompts[slot][starts[slot] : -1].tolist() for slot in group]
        runner.fill(group, [starts[slot] for slot in group], new)
        for slot in group:
            table.length[slot] = len(prompts[slot]) - 1
    return starts


def _passes(slots: Sequence[int], starts: Mapping[int, int], prompts: Mapping[int, Ids]) -> list[list[int]]:
    """Cut the slots into forward passes bounded in tokens; fresh ones, whose attention is simpler, apart from continued."""
    passes: list[list[int]] = []
    total, kind = 0, False
    for slot in slots:
        size, continued = len(prompts[slot]) - 1 - starts[slot], starts[slot] > 0
        if passes and kind == continued and total + size <= _PASS_TOKENS:
            passes[-1].append(slot)
            total += size
        else:
            passes.append([slot])
            total, kind = size, continued
    return passes
