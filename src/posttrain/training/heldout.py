"""Held-out rows: which ones, what is measured on them every so often, the best weights so far, and when to stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, DataError, PosttrainError, TrainingError
from ..core.seeds import derive
from .artifact import plain
from .processes import by_first_process, wait_for_all
from .state import keep_states, load_state, save_state
from .step import Learner

__all__ = ["OBJECTIVE", "Evaluation", "HeldOut", "question_of", "split_by_question"]

_ASKED = ("prompt", "messages", "question", "instruction", "chosen")  # as rows are read; a pair without begins alike


def question_of(row: Mapping[str, Any]) -> str:
    """Return what a row asks, as text to compare: its prompt, or its conversation before the assistant's first turn.

    Rows that ask the same are held out together, whatever they answer: else a model is tested on what it has seen.
    """
    name = next((name for name in _ASKED if name in row), "")
    turns = row.get(name)
    if isinstance(turns, str):
        more = row.get("input") if name == "instruction" else None
        turns = [{"role": "user", "content": turns if not more else f"{turns}\n\n{more}"}]
    if not isinstance(turns, Sequence) or not turns:
        return json.dumps(row, sort_keys=True, ensure_ascii=False, default=plain)
    said = [(_get(turn, "role"), _get(turn, "content")) for turn in turns]
    first = next((i for i, (role, _) in enumerate(said) if role == "assistant"), len(said))
    return json.dumps([[role, " ".join(str(text).split())] for role, text in said[:first]], ensure_ascii=False)


def _get(turn: Any, name: str) -> Any:
    return turn.get(name) if isinstance(turn, Mapping) else getattr(turn, name, turn)


def split_by_question(rows: Sequence[Mapping[str, Any]], share: float, seed: int) -> frozenset[int]:
    """Return the indices of the rows that are held out: about `share` of them, whole questions, chosen by the seed.

    The choice depends on each question's text alone, not on the order of rows. Raises `DataError` when there are not two
    questions, so that one part would be empty.
    """
    asked: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        asked.setdefault(question_of(row), []).append(i)
    if len(asked) < 2:
        raise DataError(
            f"eval_share = {share}: all {len(rows)} rows ask the same, so none can be held out; "
            "give held-out rows with eval_data"
        )
    order = sorted(asked, key=lambda text: derive(seed, "held out", hashlib.sha256(text.encode()).hexdigest()))
    held: list[int] = []
    for text in order:
        nearer = len(held) + len(asked[text]) / 2 <= share * len(rows)  # to the share, with this question than without
        if nearer and len(held) + len(asked[text]) < len(rows):
            held += asked[text]
    return frozenset(held or asked[min(order, key=lambda text: len(asked[text]))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is measured on held-out items, without changing anything but the learner's cost.

    The measure called `criterion` decides which step is the best: the one where it is lowest, or with `higher` highest.
    """

    measure: Callable[[Learner, Sequence[Any]], dict[str, float]]
    criterion: str
    higher: bool = False

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best one so far; an equal one does not."""
        return best is None or (value > best if self.higher else value < best)


# The objective's own measures over all items, as if they were one step.
OBJECTIVE = Evaluation(measure=lambda learner, items: learner.evaluate(items), criterion="loss")


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """Evaluates the held-out items, remembers the best step, and keeps that step's masters in `folder`."""

    items: Sequence[Any]
    every: int  # optimiser steps
    patience: int
    start: bool = False  # evaluate before the first step
    folder: Path
    key: str
    evaluation: Evaluation = OBJECTIVE
    also_trained: int = 0  # of the rows, those whose question is trained on too
    best_step: int = 0
    best: float | None = None  # the criterion's value there
    waited: int = 0  # evaluations since the best one
    values: dict[int, float] = field(default_factory=dict)  # of the criterion, by step
    begun: dict[str, float] = field(default_factory=dict)  # all measures of the start, where it was evaluated

    @property
    def stops(self) -> bool:
        """Whether patience is at its end."""
        return bool(self.patience) and self.waited >= self.patience

    def before(self, learner: Learner) -> None:
        """Evaluate the start; it is told, and no candidate for the best."""
        self.begun = self._measured(learner, step=0)
        self.values[0] = self.begun[self.evaluation.criterion]

    def after(self, learner: Learner, step: int, total: int) -> dict[str, float]:
        """Evaluate when it is due after `step` steps (and at the end); returns measures named `eval_…`, or nothing."""
        if step % self.every and step != total:
            return {}
        criterion = self.evaluation.criterion
        measured = self._measured(learner, step)
        self.values[step] = value = measured[criterion]
        if self.evaluation.better(value, self.best):
            self.best_step, self.best, self.waited = step, value, 0
            facts, weights = {"key": self.key, "step": step, f"eval_{criterion}": value}, learner.optimiser.weights()
            by_first_process(lambda: save_state(self.folder, step, {"masters": weights}, facts))
        else:
            self.waited += 1
        return {f"eval_{name}": value for name, value in measured.items()}

    def _measured(self, learner: Learner, step: int) -> dict[str, float]:
        """Return the measures after `step` steps; raises `TrainingError` where the criterion has no value."""
        measured, criterion = self.evaluation.measure(learner, self.items), self.evaluation.criterion
        if not math.isfinite(measured[criterion]):
            mend = "look at them, or lower lr" if step else "look at them, and at what judges them"
            raise TrainingError(f"step {step}: the {criterion} on the held-out rows is not finite: {mend}")
        return measured

    def tidy(self, referenced: Collection[int]) -> None:
        """Remove kept weights but the best and those that a saved training state still refers to; one process does."""
        keep_states(self.folder, {self.best_step, *referenced})

    def restore_best(self, learner: Learner) -> None:
        """Put the best step's weights into the module."""
        path = self.folder / f"step-{self.best_step:08d}"
        if not path.is_dir():
            raise PosttrainError(
                f"{path}, the weights of the best evaluation, is gone: remove {self.folder.parent} to start again"
            )
        device = torch.device("cpu") if learner.optimiser.sharded else learner.device
        tensors, _ = load_state(path, key=self.key, device=device)
        learner.optimiser.load_weights(tensors["masters"])
        wait_for_all()  # the export removes the folder: not before every process has read it

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        values = {str(step): value for step, value in self.values.items()}
        state = {"best_step": self.best_step, "best": self.best, "waited": self.waited, "values": values}
        return state | ({"begun": self.begun} if self.begun else {})

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a saved state."""
        self.best_step, self.waited = state["best_step"], state["waited"]
        old = "values" not in state  # saved when the loss was the only criterion
        self.best = state["best_loss" if old else "best"]
        self.values = {int(step): value for step, value in state["losses" if old else "values"].items()}
        self.begun = dict(state.get("begun", {}))

    def facts(self, total: int) -> dict[str, Any]:
        """Return what `posttrain.json` tells: which step was exported, and why."""
        last, criterion = max(self.values, default=0), self.evaluation.criterion
        return {
            "rows": len({item.row for item in self.items}),
            "also_trained": self.also_trained,
            "criterion": criterion,
            **({f"start_{criterion}": self.values[0]} if 0 in self.values else {}),
            "best_step": self.best_step,
            f"best_{criterion}": self.best,
            "last_step": last,
            f"last_{criterion}": self.values.get(last),
            "steps_planned": total,
            "stopped_early": last < total,
            **({"start": self.begun} if self.begun else {}),
        }


def check_rows(held: Sequence[Any], items: Sequence[Any], given: str) -> None:
    """Raise when nothing is left on one side."""
    if not held:
        raise ConfigError(f"{given}: no held-out row is left to evaluate on (too long ones are dropped with too_long=drop)")
    if not items:
        raise DataError("there is nothing to train on: no row is left beside the held-out ones")
