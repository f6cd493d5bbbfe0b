"""What training stages made: weights trained, memory, time, losses. A table of a report beside its rungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .words import duration, percent, si

__all__ = ["Trained", "columns", "trained_facts", "trained_rows"]

_COLUMNS = ("stage", "method", "weights trained", "of all", "peak memory", "time", "tokens", "FLOPs", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training stage. Losses are of its first and last optimiser step; held-out values of the best evaluation."""

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


def columns(stages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the heads of the table; the last one names what was measured on held-out rows, where that is one thing."""
    names = _criteria(stages) or {"loss"}
    return (*_COLUMNS, f"held-out {min(names)}" if len(names) == 1 else "held-out")


def _criteria(stages: Sequence[Mapping[str, Any]]) -> set[str]:
    return {_criterion(stage["held_out"]) for stage in stages if stage["held_out"] is not None}


def _criterion(held_out: Mapping[str, Any]) -> str:
    return str(held_out.get("criterion", "loss"))


def trained_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of `columns`, stage by stage."""
    several = len(_criteria(stages)) > 1
    rows: list[tuple[str, ...]] = []
    for stage in stages:
        first, last = stage["losses"]
        held = stage["held_out"]
        told = ""
        if held is not None:
            name = _criterion(held)
            best, before = held[f"best_{name}"], held.get(f"start_{name}")
            told = f"{best:.3f}" if before is None else f"{before:.3f} → {best:.3f}"
            told = f"{name} {told}" if several else told
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
