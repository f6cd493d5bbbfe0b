"""Log-probabilities and values of single tokens without gradient: of samples, before the weights change under them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import TrainingError
from ..core.types import Cost, Usage
from ..models.actor_critic import ActorCritic
from ..models.forward import Batch, Forward, TokenSequence
from .batching import dealt, micro_batches
from .memory import peak_bytes
from .processes import rank_and_world
from .step import Work

__all__ = ["token_logps", "token_values"]


def token_logps(
    module: Forward, groups: Sequence[Sequence[TokenSequence]], work: Sequence[Work], *, tokens_per_microbatch: int
) -> tuple[list[list[Tensor]], Cost]:
    """Return log π of each trained token, a float64 tensor for each sequence of each group, and what that cost.

    Without dropout; the module's mode is left as it was. Several processes compute a share each and have all in the end.
    """
    return _read(module, module, groups, work, tokens_per_microbatch)


def token_values(
    module: ActorCritic, groups: Sequence[Sequence[TokenSequence]], work: Sequence[Work], *, tokens_per_microbatch: int
) -> tuple[list[list[Tensor]], Cost]:
    """Return V of the state in front of each trained token, as `token_logps` does."""
    return _read(module, module.values, groups, work, tokens_per_microbatch)


@torch.no_grad()
def _read(
    module: Forward | ActorCritic, read: Callable[[Batch], Any], groups: Sequence[Sequence[TokenSequence]],
    work: Sequence[Work], tokens_per_microbatch: int,
) -> tuple[list[list[Tensor]], Cost]:  # fmt: skip
    rank, world = rank_and_world()
    began, training = time.perf_counter(), module.training
    module.eval()
    lengths = [w.tokens for w in work]
    share, tokens = dealt(range(len(groups)), lengths, world)[rank]
    own: dict[int, list[Tensor]] = {}
    for rows in micro_batches(share, tokens, tokens_per_microbatch):
        batch = module.batch([groups[i] for i in rows])
        found_N = read(batch).double().cpu()
        if not bool(found_N.isfinite().all()):
            raise TrainingError(
                f"a log-probability or a value of the model is not finite among the samples {rows} of this step"
            )
        counts = torch.bincount(batch.owner_N.cpu(), minlength=batch.sequences).tolist()
        each = iter(torch.split(found_N, counts))
        for i in rows:
            own[i] = [next(each) for _ in groups[i]]
    module.train(training)
    found = own
    if world > 1:
        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, own)
        found = {i: values for part in shares for i, values in part.items()}
    flops = sum(w.flops for w in work)
    cost = Cost(
        usage=Usage(calls=1, scored=sum(lengths)), flops=flops, flops_spent=flops,
        seconds=time.perf_counter() - began, peak_bytes=peak_bytes(),
    )  # fmt: skip
    return [found[i] for i in range(len(groups))], cost
