"""Which rows make an optimiser step, and how a step is cut into micro-batches. Pure functions of seed, epoch and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..core.seeds import rng

__all__ = ["dealt", "micro_batches", "share_of_rank", "step_rows", "steps_per_epoch"]

T = TypeVar("T")


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the optimiser steps of an epoch; the last one may be smaller, and no row is dropped."""
    return -(-rows // batch_size)


def step_rows(step: int, *, rows: int, batch_size: int, seed: int) -> list[int]:
    """Return the rows of optimiser step `step` (from 0): each epoch is a fresh permutation of all rows."""
    epoch, at = divmod(step, steps_per_epoch(rows, batch_size))
    order = list(range(rows))
    rng(seed, "data order", epoch).shuffle(order)
    return order[at * batch_size : (at + 1) * batch_size]


def micro_batches(items: Sequence[T], lengths: Sequence[int], budget: int) -> list[list[T]]:
    """Sort by length (longest first) and cut so that rows × longest row stays within `budget` tokens.

    A single row longer than the budget is a micro-batch of its own.
    """
    order = sorted(range(len(items)), key=lambda i: -lengths[i])
    batches: list[list[T]] = []
    width = 0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * width > budget:
            batches.append([])
            width = lengths[i]
        batches[-1].append(items[i])
    return batches


def dealt(items: Sequence[T], lengths: Sequence[int], world: int) -> list[tuple[list[T], list[int]]]:
    """Return each process's items and their lengths: longest first, each to the process with the fewest tokens so far."""
    shares: list[tuple[list[T], list[int]]] = [([], []) for _ in range(world)]
    for i in sorted(range(len(items)), key=lambda i: -lengths[i]):
        least = min(shares, key=lambda share: sum(share[1]))
        least[0].append(items[i])
        least[1].append(lengths[i])
    return shares


def share_of_rank(batches: Sequence[T], rank: int, world: int) -> list[T]:
    """Return the micro-batches a process computes: dealt out in turn, so that all get long and short ones."""
    return list(batches[rank::world])
