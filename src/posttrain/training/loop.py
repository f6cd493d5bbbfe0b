"""The loop over a fixed data set: epochs of optimiser steps, metrics, checkpoints of state, exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import DataError
from ..core.progress import progress
from .batching import step_rows, steps_per_epoch
from .optimiser import learning_rate
from .state import Metrics, cost_from_dict, latest, load_state, save_state
from .step import Learner, rank_and_world

__all__ = ["fit"]


def fit(
    learner: Learner,
    items: Sequence[Any],
    *,
    out: Path,
    key: str,
    batch_size: int,
    epochs: int,
    save_every: int,
    description: str,
) -> None:
    """Train `epochs` times over all items, `batch_size` a step; resumes from `out/state` after a kill.

    The data order is a function of (seed, epoch), dropout of (seed, step): a killed and resumed run equals an
    uninterrupted one bit for bit on one machine. `save_every` is in optimiser steps (0: only the end).
    """
    if not items:
        raise DataError("there is nothing to train on: no row is left")
    rank, _ = rank_and_world()
    settings = learner.optimiser.settings
    total = epochs * steps_per_epoch(len(items), batch_size)
    done = _resume(learner, out, key)
    metrics = Metrics(out / "metrics.jsonl", steps=done) if rank == 0 else None
    devices = [learner.device] if learner.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), progress(description, total, unit="step", start=done) as advance:
            for step in range(done, total):
                rows = step_rows(step, rows=len(items), batch_size=batch_size, seed=learner.seed)
                lr = learning_rate(step, total=total, peak=settings.lr, schedule=settings.schedule, warmup=settings.warmup)
                measured = learner.update([items[i] for i in rows], step=step, lr=lr)
                if metrics is not None:
                    metrics.write(_line(step, step // steps_per_epoch(len(items), batch_size), measured))
                if save_every and (step + 1) % save_every == 0 and step + 1 < total:
                    _save(learner, out, key, step + 1)
                advance(note=f"loss {measured['loss']:.4f}")
    finally:
        if metrics is not None:
            metrics.close()


def _line(step: int, epoch: int, measured: dict[str, float]) -> dict[str, Any]:
    """Order a metrics line: what is reproducible first, timings last."""
    seconds = measured.pop("seconds")
    rate = measured["tokens"] / max(seconds, 1e-9)
    return {"step": step + 1, "epoch": epoch, **measured, "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}


def _resume(learner: Learner, out: Path, key: str) -> int:
    """Load the newest state and return how many steps it has done."""
    found = latest(out / "state")
    if found is None:
        return 0
    tensors, facts = load_state(found, key=key, device=learner.device)
    learner.optimiser.load(tensors)
    learner.cost = cost_from_dict(facts["cost"])
    return int(facts["step"])


def _save(learner: Learner, out: Path, key: str, step: int) -> None:
    rank, world = rank_and_world()
    if rank == 0:
        facts = {"key": key, "step": step, "cost": asdict(learner.cost)}
        save_state(out / "state", step, learner.optimiser.state(), facts)
    if world > 1:
        dist.barrier()
