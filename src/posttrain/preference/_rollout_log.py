"""What the policy wrote while it learned, with what each sample was given for it: `rollouts.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.processes import by_first_process
from ..training.rollouts import Rollout
from ..training.state import Metrics

if TYPE_CHECKING:
    from ._batch import Batch

__all__ = ["RolloutLog"]


@dataclass(slots=True, kw_only=True)
class RolloutLog:
    """Writes the samples of the first `questions` of each step; after a kill, lines no saved state knows are cut off."""

    path: Path
    questions: int
    _file: Metrics | None = None

    def write(self, batch: Batch, step: int) -> None:
        """Append a step's lines; `step` counts from 0, the lines as those of `metrics.jsonl` do."""
        if self.questions:
            by_first_process(lambda: self._write(batch, step))

    def _write(self, batch: Batch, step: int) -> None:
        if self._file is None:
            self._file = Metrics(self.path, steps=step)
        for q, question in enumerate(batch.questions[: self.questions]):
            samples = [
                _sample(rollout)
                | {"reward": float(batch.rewards_PK[q, k])}
                | {name: float(v[q, k]) for name, v in batch.given.items() if not bool(v[q, k].isnan())}
                for k, rollout in enumerate(batch.rollouts[q])
            ]
            asked = {"row": question.row, "messages": [turn.to_dict() for turn in question.prompt.messages]}
            gold = {} if question.example.answer is None else {"answer": question.example.answer}
            self._file.write({"step": step + 1, **asked, **gold, "samples": samples})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _sample(rollout: Rollout) -> dict[str, Any]:
    turns = {"turns": [turn.to_dict() for turn in rollout.said]} if rollout.said else {}
    return {"text": rollout.completion.text, **turns, "tokens": rollout.encoded.trained, "cut": rollout.cut}
