"""Which tokens lie in which slot: the prefix cache is what the slots still hold.

A slot whose sequence has ended keeps its keys and values until it is given to another; a new prompt starts from the
slot that shares most leading tokens with it, whether that one is running or not. So a system prompt, few-shot
examples, the prompt of further samples and the stem of a tree search are computed once, without a store of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SlotTable", "common_prefix"]


def common_prefix(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """Return the number of leading tokens that are equal."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


class SlotTable:
    """Token ids by slot; `length[s]` of them have their keys and values in the cache."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.tokens = np.full((slots, 64), -1, dtype=np.int64)
        self.length = np.zeros(slots, dtype=np.int64)
        self.used = np.zeros(slots, dtype=np.int64)  # when the slot was last given or freed
        self._clock = 0

    def touch(self, slot: int) -> None:
        """Mark the slot as used now."""
        self._clock += 1
        self.used[slot] = self._clock

    def reserve(self, capacity: int) -> None:
        """Make room for token lists of this length."""
        have = self.tokens.shape[1]
        if capacity > have:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, max(capacity, have + have // 2) - have)), constant_values=-1)

    def put(self, slot: int, ids: Sequence[int] | npt.NDArray[np.int64], computed: int) -> None:
        """Say what the slot holds: these token ids, the first `computed` of them with keys and values."""
        self.reserve(len(ids) + 1)
        self.tokens[slot, : len(ids)] = ids
        self.tokens[slot, len(ids) :] = -1
        self.length[slot] = computed
        self.touch(slot)

    def clear(self) -> None:
        """Forget everything (the weights have changed)."""
        self.length[:] = 0
        self.tokens[:] = -1

    def longest(self, ids: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Return the slot that shares most leading tokens with `ids`, and how many."""
        width = min(len(ids), self.tokens.shape[1])
        equal = self.tokens[:, :width] == ids[:width]
        run = np.where(equal.all(axis=1), width, equal.argmin(axis=1)) if width else np.zeros(self.slots, dtype=np.int64)
        run = np.minimum(run, self.length)
        best = int(run.argmax())
        return best, int(run[best])

    def oldest(self, free: Collection[int]) -> int:
        """Return the free slot that has not been used for longest (never used ones first, in order)."""
        return min(free, key=lambda slot: (self.used[slot], slot))
