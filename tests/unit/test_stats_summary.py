"""The summary of an evaluation: rates beside the accuracy, cold cost and what was paid kept apart."""

import json
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.core.types import Usage
from posttrain.ledger import Row, Timing
from posttrain.stats.intervals import wilson
from posttrain.stats.summary import summarise


def row(example: str, score: float | None, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "stage": "s",
        "task": "t",
        "model": "m",
        "prompt": "p",
        "strategy": "g",
        "seed": 0,
        "answer": None,
        "unparsed": False,
        "cost": {"policy": {"calls": 1, "prompt": 10, "generated": 5, "scored": 0, "flops": 100.0}},
    }
    return Row(example=example, score=score, **(values | changes))


VERIFIED = {
    "verifier": {"calls": 2, "prompt": 4, "generated": 0, "scored": 6, "flops": 7.0},
    "policy": {"calls": 1, "prompt": 10, "generated": 5, "scored": 0, "flops": 100.0},
}


def test_summary_in_numbers() -> None:
    rows = [
        row("a", 1.0),
        row("b", 0.0, unparsed=True, truncated=0.5, cost=VERIFIED),
        row("c", None, error="overflow: the prompt has 9,000 tokens"),
        row("d", 1.0),
    ]
    timings = [Timing(example=name, seconds=1.0, cached=3, replayed=1, flops_spent=40.0) for name in "abcd"]
    summary = summarise(rows, timings, seconds=2.5)
    assert (summary.n, summary.accuracy, summary.ci95) == (4, 0.5, wilson(2, 4))
    assert (summary.unparsed_rate, summary.truncated_rate, summary.error_rate) == (0.25, 0.125, 0.25)
    assert summary.usage["policy"] == {"calls": 4, "prompt": 40, "generated": 20, "scored": 0, "flops": 400.0}
    assert summary.cost.usage == Usage(calls=6, prompt=44, cached=12, generated=20, replayed=4, scored=6)
    assert (summary.cost.flops, summary.cost.flops_spent, summary.cost.seconds) == (407.0, 160.0, 2.5)
    told = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert told["cost"] == {"calls": 6, "tokens": 70, "flops": 407.0}
    assert told["spent"] == {"tokens": 54, "cached": 12, "replayed": 4, "flops": 160.0, "seconds": 2.5}
    assert told["per_query"] == {"calls": 1.5, "tokens": 17.5, "generated": 5.0, "flops": 101.75, "seconds": 0.625}
    assert list(told["usage"]) == ["policy", "verifier"]


def test_without_timings_spent_equals_cold() -> None:
    summary = summarise([row("a", 1.0)])
    assert summary.cost.flops_spent == summary.cost.flops == 100.0
    assert summary.cost.usage.tokens_spent == 15


def test_nothing_and_impossible_scores_are_errors() -> None:
    with pytest.raises(DataError, match="no rows"):
        summarise([])
    with pytest.raises(DataError, match=r"example 'x' has score 1\.5"):
        summarise([row("x", 1.5)])
