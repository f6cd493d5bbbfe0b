"""What one forward pass does, told to the attention and the cache that it calls, in the thread that runs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.errors import ModelError
from .runs import Run

__all__ = ["IMPLEMENTATION", "Step", "current", "running"]

IMPLEMENTATION = "posttrain_slots"  # the name of the attention, for transformers


@dataclass(slots=True)
class Step:
    """What one forward pass does: `lengths[i]` new tokens of slot `slots[i]`, after `starts[i]` that are there already."""

    slots: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    positions: Tensor  # [1, T] packed, or [R, 1] in a decode
    decode: bool = False  # one new token in every slot of a contiguous range
    runs: Sequence[Run] = ()  # of a decode: which rows read what; those between two runs are nobody's
    fresh: bool = field(init=False)  # nothing is in the slots yet: attention is among the new tokens only
    reach: int = field(init=False)  # positions read
    rows: Tensor = field(init=False)  # the slots, as an index

    def __post_init__(self) -> None:
        self.rows = torch.tensor(self.slots, device=self.positions.device)
        self.fresh = not self.decode and not any(self.starts)
        self.reach = max(start + length for start, length in zip(self.starts, self.lengths, strict=True))


_thread = threading.local()


@contextmanager
def running(step: Step) -> Iterator[None]:
    """Make `step` the one that attention calls of this thread belong to."""
    _thread.step = step
    try:
        yield
    finally:
        _thread.step = None


def current() -> Step:
    """Return the step that this thread runs; ModelError outside the engine."""
    step: Step | None = getattr(_thread, "step", None)
    if step is None:
        raise ModelError(f"attention '{IMPLEMENTATION}' works only inside the local engine; set another attn_implementation")
    return step
