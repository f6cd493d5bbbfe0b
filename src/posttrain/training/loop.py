"""The loop over a fixed data set: epochs of optimiser steps, metrics, checkpoints of state, exact resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.errors import DataError, PosttrainError
from ..core.files import read_json
from ..core.progress import progress
from .batching import step_rows, steps_per_epoch
from .heldout import HeldOut
from .processes import agree, by_first_process, rank_and_world, say
from .rollouts import Fresh
from .samples import Samples
from .schedule import learning_rate
from .settings import Tracker
from .state import Metrics, all_states, cost_from_dict, keep_states, load_newest, save_state, step_of
from .step import Learner
from .stopping import heeding_signals
from .tracking import Tracking

__all__ = ["Companions", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What goes along with training; but for `fresh`, none of it changes a step."""

    held_out: HeldOut | None = None
    samples: Samples | None = None
    fresh: Fresh | None = None  # this one does: what steps train on in place of their rows
    track: Tracker | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # what the tracker shows beside the metrics
    keep: int = 1  # saved states


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
    companions: Companions | None = None,
) -> int:
    """Train `epochs` times over all items, `batch_size` a step; resumes from `out/state` after a kill.

    The data order is a function of (seed, epoch), dropout of (seed, step): a killed and resumed run equals an
    uninterrupted one bit for bit on one machine. `save_every` is in optimiser steps (0: only the end); asked to stop by
    Ctrl-C or SIGTERM, it saves the state of the step it is in and leaves. With held-out items it may stop early, and leaves
    the module with the weights of the best evaluation. Returns the steps planned.
    """
    if not items:
        raise DataError("there is nothing to train on: no row is left")
    companions = companions or Companions()
    held_out, samples = companions.held_out, companions.samples
    settings = learner.optimiser.settings
    total = epochs * steps_per_epoch(len(items), batch_size)
    done = _resume(learner, out, key, companions)
    devices = [learner.device] if learner.device.type == "cuda" else []
    with ExitStack() as stack:
        lines = _Lines(out, key, companions, done)
        stack.callback(lines.close)
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if samples is not None:
            stack.callback(samples.close)
            samples.begin(learner, done)
        if held_out is not None and held_out.start and not done:
            held_out.before(learner)
        first = rank_and_world()[0] == 0
        asked = stack.enter_context(heeding_signals())
        advance = stack.enter_context(progress(description, total, unit="step", start=done, shown=first))
        for step in range(done, total):
            if held_out is not None and held_out.stops:
                say(f"{description}: stopped after step {step}, no better evaluation since step {held_out.best_step}")
                break
            rows = step_rows(step, rows=len(items), batch_size=batch_size, seed=learner.seed)
            lr = learning_rate(
                step, total=total, peak=settings.lr, schedule=settings.schedule, warmup=settings.warmup,
                decay_share=settings.decay_share,
            )  # fmt: skip
            updates, told = _updates_of_step(learner, [items[i] for i in rows], step, companions.fresh)
            measured = _updated(learner, updates, step, lr) | told
            if held_out is not None:
                measured |= held_out.after(learner, step + 1, total)
                if first:
                    held_out.tidy(_best_steps(out / "state"))
            lines.write(_line(step, step // steps_per_epoch(len(items), batch_size), measured))
            if samples is not None:
                samples.after(learner, step + 1, total)
            stopped = asked.everywhere()
            if stopped or (save_every and (step + 1) % save_every == 0 and step + 1 < total):
                _save(learner, out, key, step + 1, companions)
            if stopped:
                asked.obey()
            advance(note=f"loss {measured['loss']:.4f}")
    if held_out is not None:
        held_out.restore_best(learner)
    return total


def _updates_of_step(
    learner: Learner, rows: Sequence[Any], step: int, fresh: Fresh | None
) -> tuple[Sequence[Sequence[Any]], dict[str, float]]:
    """Return what each optimiser update of a step trains on (mostly there is one), and what is to be told of it."""
    if fresh is None:
        return [rows], {}
    made = fresh(rows, step)
    learner.cost += made.cost
    return made.updates or [made.items], made.measures


def _updated(learner: Learner, updates: Sequence[Sequence[Any]], step: int, lr: float) -> dict[str, float]:
    """Take a step's updates; of several, tokens and seconds are added and all other measures averaged."""
    found = [learner.update(items, step=step * len(updates) + i, lr=lr) for i, items in enumerate(updates)]
    if len(found) == 1:
        return found[0]
    names = {name: None for measured in found for name in measured}
    sums = {name: sum(measured.get(name, 0.0) for measured in found) for name in names}
    return {name: value if name in ("tokens", "seconds") else value / len(found) for name, value in sums.items()}


class _Lines:
    """Where a line of metrics goes: the first process's `metrics.jsonl`, and its tracker."""

    def __init__(self, out: Path, key: str, companions: Companions, done: int) -> None:
        self._metrics: Metrics | None = None
        self._tracking: Tracking | None = None

        def opened() -> None:
            if companions.track is not None:
                self._tracking = Tracking.open(companions.track, out, key=key, config=companions.config, done=done)
            self._metrics = Metrics(out / "metrics.jsonl", steps=done)

        by_first_process(opened)

    def write(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(line)
        if self._tracking is not None:
            self._tracking.log(line)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._tracking is not None:
            self._tracking.close()


def _line(step: int, epoch: int, measured: dict[str, float]) -> dict[str, Any]:
    """Order a metrics line: what is reproducible first, timings last."""
    seconds = measured.pop("seconds")
    rate = measured["tokens"] / max(seconds, 1e-9)
    return {"step": step + 1, "epoch": epoch, **measured, "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}


def _resume(learner: Learner, out: Path, key: str, companions: Companions) -> int:
    """Load the newest state that can be read and return how many steps it has done."""
    device = torch.device("cpu") if learner.optimiser.sharded else learner.device  # whole tensors, of which slices are taken
    found = load_newest(out / "state", key=key, device=device, say=say)
    agree(
        None if found is None else found[1]["step"],
        f"the processes do not find the same saved state in {out}: use a folder that all machines share",
    )
    if found is None:
        return 0
    tensors, facts = found
    learner.optimiser.load(tensors)
    learner.cost = cost_from_dict(facts["cost"])
    if companions.held_out is not None:
        companions.held_out.load(facts["held_out"])
    if "fresh" in facts:
        companions.fresh.load(facts["fresh"])  # type: ignore[union-attr]
    if learner.alarm is not None and "alarm" in facts:  # the alarm may have been set after the kill
        learner.alarm.load(facts["alarm"])
    return int(facts["step"])


def _save(learner: Learner, out: Path, key: str, step: int, companions: Companions) -> None:
    """Save the state of a step; older ones go only when it is whole."""
    tensors = learner.optimiser.state()

    def work() -> None:
        facts: dict[str, Any] = {"key": key, "step": step, "cost": asdict(learner.cost)}
        if companions.held_out is not None:
            facts["held_out"] = companions.held_out.state()
        if learner.alarm is not None:
            facts["alarm"] = learner.alarm.state()
        if (state := getattr(companions.fresh, "state", None)) is not None:
            facts["fresh"] = state()
        save_state(out / "state", step, tensors, facts)
        older = [step_of(path) for path in all_states(out / "state") if step_of(path) < step]
        keep_states(out / "state", {step, *(older[1 - companions.keep :] if companions.keep > 1 else ())})

    by_first_process(work)


def _best_steps(folder: Path) -> set[int]:
    """Return the steps of the best evaluations that saved states refer to."""
    found = set()
    for path in all_states(folder):
        with suppress(PosttrainError):  # a broken state refers to nothing
            found.add(int(read_json(path / "facts.json")["held_out"]["best_step"]))
    return found
