"""What the processes of one run do together; without `torch.distributed` there is one, and nothing is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch.distributed as dist

from ..core.errors import PosttrainError

__all__ = ["by_first_process", "rank_and_world", "say", "wait_for_all"]


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) without `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def by_first_process(work: Callable[[], None]) -> None:
    """Let process 0 do something while the others wait; its failure is raised by all, so that none waits for ever."""
    rank, world = rank_and_world()
    if world == 1:
        work()
        return
    failure: Exception | None = None
    if rank == 0:
        try:
            work()
        except Exception as error:
            failure = error
    told: list[str | None] = [None if failure is None else f"process 0: {failure}"]
    dist.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[0] is not None:
        raise PosttrainError(told[0])


def wait_for_all() -> None:
    """Go on only when every process has come this far."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def say(sentence: str) -> None:
    """Tell the user something on the error stream, once for all processes."""
    if rank_and_world()[0] == 0:
        print(f"note: {sentence}", file=sys.stderr, flush=True)
