"""What training stages made: weights trained, memory, time, losses. A table of a report beside its rungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .words import duration, percent, si

__all__ = ["COLUMNS", "Trained", "trained_facts", "trained_rows"]

COLUMNS = ("stage", "method", "weights trained", "of all", "peak memory", "time", "tokens", "FLOPs", "loss", "held-out loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training stage. Losses are of its first and last optimiser step; held-out ones of the best evaluation."""

    name: str
    label: str
    method: str
    weights: int  # trained
    share: float  # of all
    peak_bytes: int
    seconds: float
    tokens: int
    flops: float
    steps: int
    losses: tuple[float, float]
    held_out: Mapping[str, Any] | None = None  # what `posttrain.json` says of the evaluation
    course: Mapping[str, Any] | None = None  # reward and what was watched against KL (`proxy_gold.course_of`)


def trained_facts(stages: Sequence[Trained]) -> list[dict[str, Any]]:
    """Return the stages as JSON values."""
    return [asdict(stage) | {"losses": list(stage.losses)} for stage in stages]


def trained_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of `COLUMNS`, stage by stage."""
    rows: list[tuple[str, ...]] = []
    for stage in stages:
        first, last = stage["losses"]
        held = stage["held_out"]
        told = ""
        if held is not None:
            before = held.get("start_loss")
            told = f"{before:.3f} → {held['best_loss']:.3f}" if before is not None else f"{held['best_loss']:.3f}"
        rows.append(
            (
                stage["label"],
                stage["method"],
                si(stage["weights"]),
                percent(stage["share"]) if stage["share"] >= 0.0005 else f"{100 * stage['share']:.3f}%",
                f"{si(stage['peak_bytes'])}B",
                duration(stage["seconds"]),
                si(stage["tokens"]),
                si(stage["flops"]),
                f"{first:.3f} → {last:.3f}",
                told,
            )
        )
    return rows
