"""How well a process reward model finds the first wrong step, against the best constant answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

__all__ = ["first_below", "step_report"]


def first_below(values: Sequence[float | None], threshold: float = 0.5) -> int | None:
    """Return the index of the first value below the threshold; None where there is none (unknown ones are passed over)."""
    return next((k for k, value in enumerate(values) if value is not None and value < threshold), None)


def step_report(
    chances: Sequence[Sequence[float]],
    labels: Sequence[Sequence[float | None]],
    questions: Sequence[str] | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Return what judged solutions say of the probabilities that their steps are right, as JSON values.

    `step_accuracy` over judged steps, beside `majority_step_accuracy` (always the commoner side). With the predicted and the
    judged first wrong step of each solution (none: all steps right), `first_wrong`: precision = exact hits / predictions,
    recall = exact hits / solutions with a wrong step, and their F1; `majority_f1`: that of the best constant place, chosen
    on these very solutions. `harmonic`: of the accuracies on solutions with and without a wrong step, None where one kind is
    missing (Zheng et al. 2024, ProcessBench, 2412.06559, section 4.1). With `questions`, what each solution answers,
    `within`: of the `pairs` of a solution without a step judged wrong and one with one to the same question, the share in
    which the former's weakest step has the higher probability (equal: half), as choosing among samples needs; None without a
    pair. Raises `ValueError` without a judged step.
    """
    steps = (step for ps, ys in zip(chances, labels, strict=True) for step in zip(ps, ys, strict=True))
    judged = [(p >= threshold, y >= 0.5) for p, y in steps if y is not None]
    if not judged:
        raise ValueError("no step is judged")
    right = sum(actual for _, actual in judged) / len(judged)
    predicted = [first_below(ps, threshold) for ps in chances]
    actual = [first_below(ys) for ys in labels]
    places = {place for place in actual if place is not None}
    return {
        "solutions": len(actual),
        "with_a_wrong_step": sum(place is not None for place in actual),
        "steps": len(judged),
        "step_accuracy": sum(p == y for p, y in judged) / len(judged),
        "majority_step_accuracy": max(right, 1 - right),
        "first_wrong": _found(predicted, actual),
        "majority_f1": max((_found([place] * len(actual), actual)["f1"] for place in places), default=0.0),
        "harmonic": _harmonic(predicted, actual),
        **({} if questions is None else {"within": _within(questions, [min(ps) for ps in chances], actual)}),
    }


def _found(predicted: Sequence[int | None], actual: Sequence[int | None]) -> dict[str, float]:
    hits = sum(p is not None and p == a for p, a in zip(predicted, actual, strict=True))
    said, there = (sum(place is not None for place in places) for places in (predicted, actual))
    return {
        "precision": hits / said if said else 0.0,
        "recall": hits / there if there else 0.0,
        "f1": 2 * hits / (said + there) if said + there else 0.0,
    }


def _harmonic(predicted: Sequence[int | None], actual: Sequence[int | None]) -> float | None:
    sides: list[float] = []
    for wrong in (True, False):
        of = [p == a for p, a in zip(predicted, actual, strict=True) if (a is not None) == wrong]
        if not of:
            return None
        sides.append(sum(of) / len(of))
    return 2 * sides[0] * sides[1] / sum(sides) if sum(sides) else 0.0


def _within(questions: Sequence[str], weakest: Sequence[float], actual: Sequence[int | None]) -> dict[str, Any] | None:
    of: dict[str, list[tuple[float, bool]]] = {}
    for question, value, place in zip(questions, weakest, actual, strict=True):
        of.setdefault(question, []).append((value, place is None))
    won: list[float] = []
    for replies in of.values():
        for (a, flawless), (b, other) in itertools.combinations(replies, 2):
            if flawless != other:
                won.append(0.5 if a == b else float((a > b) == flawless))
    return {"pairs": len(won), "ranked_right": sum(won) / len(won)} if won else None
