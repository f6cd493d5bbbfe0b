"""What is kept of one answered example. Results and timings are apart: results are the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..core.types import Cost, Usage

__all__ = ["Row", "Samples", "Timing", "cold", "timing_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example, answered and graded.

    `score` is None when nothing could be graded (`error` says why); such a row counts as wrong, and its rate is
    reported. `truncated` is the share of candidates cut by the token limit. `cost` maps a role ("policy", "verifier",
    "judge", …) to cold counts only: `calls`, `prompt`, `generated`, `scored` (tokens) and `flops`.
    """

    stage: str
    task: str
    example: str
    model: str
    prompt: str
    strategy: str
    seed: int
    score: float | None
    answer: str | None
    unparsed: bool
    truncated: float = 0.0
    error: str | None = None
    candidates: tuple[Mapping[str, Any], ...] = ()  # {"answer", "score", "finish", "tokens", "mean_logprob"} each; "value"
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trace: Mapping[str, Any] = field(default_factory=dict)

    def cold(self) -> Cost:
        """Return the cost over all roles."""
        usage, flops = Usage(), 0.0
        for counts in self.cost.values():
            usage += Usage(**{name: int(counts[name]) for name in ("calls", "prompt", "generated", "scored")})
            flops += counts["flops"]
        return Cost(usage=usage, flops=flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The texts behind a row: the chosen one and those of its candidates, in the row's order."""

    example: str
    text: str
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What was paid for a row, which depends on the run: tokens not computed again (`cached`, `replayed`), FLOPs, time.

    `seconds` is how long the example took; examples run side by side, so the sum says nothing about the evaluation.
    """

    example: str
    seconds: float = 0.0
    cached: int = 0
    replayed: int = 0
    flops_spent: float = 0.0


def cold(cost: Cost) -> dict[str, float]:
    """Return the part of a cost that is the same in every run, as a row keeps it."""
    usage = cost.usage
    return {
        "calls": usage.calls,
        "prompt": usage.prompt,
        "generated": usage.generated,
        "scored": usage.scored,
        "flops": cost.flops,
    }


def timing_of(example: str, costs: Mapping[str, Cost], seconds: float) -> Timing:
    """Return the part of the roles' costs that depends on the run."""
    total = sum(costs.values(), Cost())
    return Timing(
        example=example,
        seconds=seconds,
        cached=total.usage.cached,
        replayed=total.usage.replayed,
        flops_spent=total.flops_spent,
    )


Record = Row | Samples | Timing


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON values, fields in the order of the class."""
    return {f.name: getattr(record, f.name) for f in fields(record)}


def from_json(kind: type[Any], values: Any) -> Any:
    """Return the record that `to_json` wrote; raises `ValueError` that names the wrong field."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"unknown field '{name}'")
    try:
        record = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except TypeError as error:
        raise ValueError(str(error).split("__init__() ")[-1]) from None
    if not isinstance(record.example, str):
        raise ValueError("'example' is not a string")
    return record
