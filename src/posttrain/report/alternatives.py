"""What the figures show, in words, for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .words import UNIT, interval, percent, points, si

__all__ = ["alt_cost", "alt_gains", "alt_ladder", "alt_retention", "alt_sizes"]

Facts = Mapping[str, Any]


def alt_cost(report: Facts) -> str:
    """Describe accuracy against cost."""
    unit = report["unit"]
    told = "; ".join(f"{r['label']} {percent(r['accuracy'])} at {si(r['per_query'][unit])}" for r in report["rungs"])
    return f"Scatter plot of accuracy against {UNIT[unit]} per query. {told}."


def alt_ladder(report: Facts) -> str:
    """Describe the accuracy of every rung."""
    told = "; ".join(
        f"{r['label']} {percent(r['accuracy'])} {interval(r['ci95'])}" for r in (*report["rungs"], *report["oracles"])
    )
    return f"Bar chart of accuracy with 95% intervals. {told}."


def alt_gains(report: Facts) -> str:
    """Describe the paired differences."""
    shown = [rung for rung in report["rungs"] if rung["difference"]]
    told = "; ".join(
        f"{r['label']} {points(r['difference']['difference'])} {interval(r['difference']['ci95'])}" for r in shown
    )
    return f"Paired differences in percentage points with 95% intervals. {told}."


def alt_sizes(pairs: Sequence[tuple[Facts, Facts]]) -> str:
    """Describe what each size of model gained; `pairs` are rungs before and after."""
    told = "; ".join(
        f"{si(after['parameters'])} parameters: {before['label']} {percent(before['accuracy'])}, "
        f"{after['label']} {percent(after['accuracy'])}, {points(after['difference']['difference'])} "
        f"{interval(after['difference']['ci95'])}"
        for before, after in pairs
    )
    return f"Accuracy before and after training against model size. {told}."


def alt_retention(report: Facts) -> str:
    """Describe what general tasks lost."""
    told = "; ".join(
        f"{task['task']}, {change['label']}: {percent(task['before']['accuracy'])} before, "
        f"{percent(change['accuracy'])} after, "
        f"{points(change['difference']['difference'])} {interval(change['difference']['ci95'])}"
        for task in report["retention"]["tasks"]
        for change in task["after"]
    )
    return f"Accuracy on general tasks before and after training. {told}."
