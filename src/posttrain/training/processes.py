"""What the processes of one run do together; without `torch.distributed` there is one, and nothing is sent.

Asking how many there are does not import torch: where nothing has imported it, there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from ..core.errors import OtherProcessError, PosttrainError
from ..core.types import Cost

__all__ = ["agree", "any_process", "by_first_process", "gathered", "patient_group", "rank_and_world", "say", "wait_for_all"]

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

_patient: tuple[Any, Any] | None = None  # the group of all processes, and the patient one made for it


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) without `torch.distributed`."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def patient_group() -> Any:
    """Return the group for messages between processors: it waits for days, because one process may work long alone.

    A process that ends is noticed at once all the same: its connections close.
    """
    import torch.distributed as dist

    global _patient
    if _patient is None or _patient[0] is not dist.group.WORLD:
        _patient = (dist.group.WORLD, dist.new_group(backend="gloo", timeout=timedelta(days=30)))
    return _patient[1]


def gathered(asked: Sequence[A], own: Callable[[Sequence[A]], tuple[list[R], Cost]]) -> tuple[list[R], Cost]:
    """Return what `own` finds for each that is asked, and the cost: every process does a share, and all have all of it."""
    rank, world = rank_and_world()
    share = own(asked[rank::world])
    if world == 1:
        return share
    import torch.distributed as dist

    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, share)
    found: list[Any] = [None] * len(asked)
    for other, (results, _) in enumerate(shares):
        found[other::world] = results
    return found, sum((cost for _, cost in shares), Cost())


def by_first_process(work: Callable[[], T]) -> T:
    """Let process 0 do something while the others wait, and return its result in all of them.

    Its failure is raised by all, so that none waits for ever: by the others as `OtherProcessError`.
    """
    rank, world = rank_and_world()
    if world == 1:
        return work()
    import torch.distributed as dist

    failure: Exception | None = None
    told: list[Any] = [None, None]  # the failure in words, the result
    if rank == 0:
        try:
            told[1] = work()
        except Exception as error:
            failure, told[0] = error, f"process 0: {error}"
    dist.broadcast_object_list(told, src=0, group=patient_group())
    if failure is not None:
        raise failure
    if told[0] is not None:
        raise OtherProcessError(told[0])
    result: T = told[1]
    return result


def agree(value: Any, sentence: str) -> None:
    """Raise `PosttrainError` with this sentence in all processes unless all have the same value."""
    world = rank_and_world()[1]
    if world == 1:
        return
    import torch.distributed as dist

    values: list[Any] = [None] * world
    dist.all_gather_object(values, value, group=patient_group())
    if any(other != values[0] for other in values):
        raise PosttrainError(sentence)


def any_process(flag: bool) -> bool:
    """Return in all processes whether any of them has the flag set."""
    if rank_and_world()[1] == 1:
        return flag
    import torch
    import torch.distributed as dist

    found = torch.tensor(int(flag))
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=patient_group())
    return bool(found)


def wait_for_all() -> None:
    """Go on only when every process has come this far."""
    if rank_and_world()[1] > 1:
        import torch.distributed as dist

        dist.barrier(group=patient_group())


def say(sentence: str) -> None:
    """Tell the user something on the error stream, once for all processes."""
    if rank_and_world()[0] == 0:
        print(f"note: {sentence}", file=sys.stderr, flush=True)
