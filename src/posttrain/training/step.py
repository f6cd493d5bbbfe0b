"""One optimiser step, exact however it is cut: micro-batches, accumulation and processes give the same update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import TrainingError
from ..core.seeds import derive
from ..core.types import Cost, Usage
from .alarm import Alarm
from .batching import dealt, micro_batches
from .lanes import Lanes
from .memory import peak_bytes
from .optimiser import Optimiser
from .processes import patient_group, rank_and_world
from .shards import rest

__all__ = ["Learner", "Objective", "Work", "rank_and_world"]

BUCKET = 16 << 20  # numbers that are added over processes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one item costs in a training step: tokens computed (padding excluded) and floating-point operations.

    `read` are the tokens that another model (a teacher) reads for it; their operations are in `flops`.
    """

    tokens: int
    flops: float
    read: int = 0


class Objective(Protocol):
    """A method's loss. An item is one row or group of rows that must stay in one micro-batch; it has `row: int`.

    One that may be called by several threads at once, with modules of their own, says so: `side_by_side = True`.
    """

    def work(self, item: Any, *, backward: bool = True) -> Work:
        """Return what an item costs in training, or (`backward=False`) in evaluation."""
        ...

    def totals(self, items: Sequence[Any]) -> Any:
        """Return the counts the loss is normalised by, over all items of the optimiser step on all processes."""
        ...

    def __call__(self, module: Any, items: Sequence[Any], totals: Any) -> tuple[Tensor, Mapping[str, Any]]:
        """Return this micro-batch's share of the loss, and of each measure: shares add up to the step's value.

        An objective that must know something of the whole step first (KTO's baseline) has `complete(totals, sums)` too: it
        is called with the totals as counted, returns measures without a loss, and `complete` makes totals of their sums.
        """
        ...


@dataclass(slots=True, kw_only=True)
class Learner:
    """A module, its objective and its optimiser; `update` takes one optimiser step.

    Random numbers (dropout) are seeded from (seed, step, process), so a resumed run needs no saved generator state.
    """

    module: nn.Module
    objective: Objective
    optimiser: Optimiser
    tokens_per_microbatch: int
    seed: int
    device: torch.device
    cost: Cost = field(default_factory=Cost)
    alarm: Alarm | None = None
    lanes: Lanes | None = None  # micro-batches at once; their first module is `module`

    def update(self, items: Sequence[Any], *, step: int, lr: float) -> dict[str, float]:
        """Take optimiser step `step` (from 0) on all its items; returns the step's measures.

        Raises `TrainingError`, before any weight changes, naming the rows whose loss or gradient is not finite, or those
        with the largest when the alarm calls the step an explosion.
        """
        began = time.perf_counter()
        rank, world = rank_and_world()
        if not items:  # samples none of which has a gradient: a gradient of zero, which Adam's moments learn of
            self.optimiser.gradients()
            self.optimiser.update(lr, 0.0)
            return {"loss": 0.0, "grad_norm": 0.0, "lr": lr, "tokens": 0, "seconds": time.perf_counter() - began}
        work = [self.objective.work(item) for item in items]
        totals = self._totals(items, work)
        torch.manual_seed(derive(self.seed, "step", step, rank))
        self._mode(True)
        sums = self._shares(items, work, totals)
        if world > 1:
            if not self.optimiser.sharded:  # there each backward pass has done it
                _add_over_processes(self.optimiser.gradients())
            sums = _summed_over_processes(sums, self.device)
        norm = self.optimiser.norm()
        if not (math.isfinite(norm) and math.isfinite(float(sums["loss"]))):
            self.optimiser.discard()
            raise TrainingError(self._diagnosis(items, totals, step))
        if self.alarm is not None:
            if (why := self.alarm.exceeded(float(sums["loss"]), norm)) is not None:
                self.optimiser.discard()
                raise TrainingError(self._explosion(items, step, why))
            self.alarm.note(float(sums["loss"]), norm)
        norms = {f"grad_norm_{name}": own for name, own in self.optimiser.update(lr, norm).items()}
        seconds = self._charge(work, began)
        measured = {name: float(value) for name, value in sums.items()}
        loss_value, tokens = measured.pop("loss"), sum(w.tokens for w in work)
        told = {"loss": loss_value, "grad_norm": norm, **norms, "lr": lr, "tokens": tokens}
        return {**told, **measured, "seconds": seconds}

    @torch.no_grad()
    def evaluate(self, items: Sequence[Any]) -> dict[str, float]:
        """Return the measures over all these items as if they were one step, without dropout; changes no weight."""
        began = time.perf_counter()
        work = [self.objective.work(item, backward=False) for item in items]
        self._mode(False)
        sums = self._shares(items, work, self._totals(items, work))
        if rank_and_world()[1] > 1:
            sums = _summed_over_processes(sums, self.device)
        if self.optimiser.sharded:
            rest(self.module)
        self._charge(work, began)
        return {name: float(value) for name, value in sums.items()}

    @torch.no_grad()
    def _totals(self, items: Sequence[Any], work: Sequence[Work]) -> Any:
        """Return the objective's counts; what it must know of the whole step first is measured here, without dropout."""
        totals = self.objective.totals(items)
        complete = getattr(self.objective, "complete", None)
        if complete is None:
            return totals
        training = self.module.training
        self._mode(False)
        sums = self._shares(items, work, totals)
        if rank_and_world()[1] > 1:
            sums = _summed_over_processes(sums, self.device)
        if self.optimiser.sharded:
            rest(self.module)
        self._mode(training)
        return complete(totals, sums)

    def _shares(self, items: Sequence[Any], work: Sequence[Work], totals: Any) -> dict[str, Tensor]:
        """Run this process's micro-batches, backward too where gradients are wanted; returns its shares of the measures."""
        rank, world = rank_and_world()
        lengths = [w.tokens for w in work]
        shares, budget = dealt(items, lengths, world), self.tokens_per_microbatch
        if self.lanes is not None and (parts := self.lanes.deal(*shares[rank])) is not None:
            cut = [micro_batches(*part, budget) for part in parts]
            return _added(self.lanes.run(lambda module, lane: self._share(module, cut[lane], totals)))
        batches = [micro_batches(*share, budget) for share in shares]
        sums = self._share(self.module, batches[rank], totals)
        if self.optimiser.sharded:
            missing = max(map(len, batches)) - len(batches[rank])
            self._accompany(items[lengths.index(min(lengths))], totals, missing)
        return sums

    def _share(self, module: nn.Module, batches: Sequence[Sequence[Any]], totals: Any) -> dict[str, Tensor]:
        """Run some micro-batches one after the other; returns their shares of the measures."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            loss, measures = self.objective(module, batch, totals)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            told = {"loss": loss, **measures}
            sums = _added([sums, {k: torch.as_tensor(value).detach().double().cpu() for k, value in told.items()}])
        return sums

    def _mode(self, training: bool) -> None:
        (self.module if self.lanes is None else self.lanes).train(training)

    def _accompany(self, item: Any, totals: Any, times: int) -> None:
        """Run an item without weight: slices are gathered by all processes together, so all run as many micro-batches."""
        for _ in range(times):
            loss, _ = self.objective(self.module, [item], totals)
            if loss.requires_grad:
                (0.0 * loss).backward()  # type: ignore[no-untyped-call]

    def _charge(self, work: Sequence[Work], began: float) -> float:
        seconds = time.perf_counter() - began
        tokens, flops = sum(w.tokens for w in work), sum(w.flops for w in work)
        scored = tokens + sum(w.read for w in work)
        self.cost += Cost(
            usage=Usage(calls=1, scored=scored), flops=flops, flops_spent=flops, seconds=seconds, peak_bytes=peak_bytes()
        )
        return seconds

    def _alone(self, item: Any, totals: Any) -> tuple[float, float]:
        """Return loss and gradient norm of one item by itself; drops the gradient."""
        loss, _ = self.objective(self.module, [item], totals)
        value, norm = float(loss.detach()), 0.0
        if math.isfinite(value) and loss.requires_grad:
            if self.optimiser.sharded:  # every process adds its own
                loss = loss / rank_and_world()[1]
            loss.backward()  # type: ignore[no-untyped-call]
            norm = self.optimiser.norm()
        self.optimiser.discard()
        self.module.zero_grad(set_to_none=True)
        return value, norm

    def _diagnosis(self, items: Sequence[Any], totals: Any, step: int) -> str:
        """Name the rows at fault by running them one by one."""
        bad = [item.row for item in items if not all(map(math.isfinite, self._alone(item, totals)))]
        where = f"rows {bad}" if bad else f"none of the rows {[item.row for item in items]} alone, only their sum"
        return (
            f"step {step + 1}: loss or gradient is not finite ({where}); no weight was changed in this step. "
            "Look at these rows, or lower lr"
        )

    def _explosion(self, items: Sequence[Any], step: int, why: str) -> str:
        """Name the rows whose own gradients are the largest, each normalised as if it were the whole step."""
        alone = [(item.row, *self._alone(item, self._totals([item], [self.objective.work(item)]))) for item in items]
        worst = sorted(alone, key=lambda found: -found[2])[:3]
        rows = ", ".join(f"row {row}: loss {loss:.4g}, gradient norm {norm:.4g}" for row, loss, norm in worst)
        return (
            f"step {step + 1}: {why}; no weight was changed in this step. The largest by themselves are {rows}. Look at "
            "these rows, lower lr, or raise explode and run the same command again to go on"
        )


def _added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Add measures by name, in this order."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.double)) + value
    return sums


def _add_over_processes(gradients: Sequence[Tensor]) -> None:
    """Add each gradient over processes, in place; a process without a micro-batch takes part with zeros."""
    for bucket in _buckets(gradients):
        if len(bucket) == 1:
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, summed in zip(bucket, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients that travel together: an adapter has hundreds of small ones, each of which would wait for the net."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.numel() for g in (*bucket, gradient)) > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _summed_over_processes(sums: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Add measures over processes. A process without a micro-batch takes part with zeros."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, sorted(sums), group=patient_group())
    wanted = sorted({name for some in names for name in some})
    packed = torch.stack([sums.get(name, torch.zeros((), dtype=torch.double)) for name in wanted])
    packed = packed.to(device)
    dist.all_reduce(packed)
    return dict(zip(wanted, packed.cpu(), strict=True))
