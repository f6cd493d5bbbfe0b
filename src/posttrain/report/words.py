"""Numbers and findings in words. What does not help is said as plainly as what does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "MEASURABLE",
    "accuracy",
    "across",
    "break_even_sentence",
    "count",
    "duration",
    "forgetting_sentence",
    "headline",
    "interval",
    "measured",
    "percent",
    "points",
    "probability",
    "ratio",
    "share",
    "si",
    "steps",
    "verdict",
]

MEASURABLE = 0.05  # Holm-adjusted p below which a difference is called measurable

UNIT = {"flops": "FLOPs", "tokens": "tokens"}


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def share(value: float | None) -> str:
    """Return a share between 0 and 1 with two decimals, a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def interval(bounds: Sequence[float]) -> str:
    """Return an interval of shares in percentage points."""
    return "[" + ", ".join(_signed(100 * bound, plus=False) for bound in bounds) + "]"


def accuracy(found: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval."""
    return f"{percent(found['accuracy'])} {interval(found['ci95'])}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, signed."""
    return _signed(100 * difference, plus=True)


def probability(p: float) -> str:
    """Return a p value with its sign of relation."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if p < 0.1 else f"= {min(p, 1.0):.2f}"


def si(value: float) -> str:
    """Return a number with three digits and an SI prefix."""
    if value == 0:
        return "0"
    exponent = min(max(math.floor(math.log10(abs(value)) / 3 + 1e-12), 0), 8)
    scaled = value / 1000**exponent
    if abs(scaled) >= 999.5 and exponent < 8:
        exponent, scaled = exponent + 1, scaled / 1000
    digits = 0 if abs(scaled) >= 100 or (exponent == 0 and value == int(value)) else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:.{digits}f} {' kMGTPEZY'[exponent]}".strip()


def count(value: float) -> str:
    """Return a large count rounded to two digits."""
    if value < 100:
        return f"{math.ceil(value):,}"
    digits = math.floor(math.log10(value)) - 1
    return f"{math.ceil(value / 10**digits) * 10**digits:,}" if value < 1e9 else f"{si(value)}"


def duration(seconds: float) -> str:
    """Return a time in its natural unit."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ratio(value: float | None) -> str:
    """Return a ratio of costs."""
    if value is None:
        return "an unknown cost"
    if 0.95 <= value <= 1.05:
        return "the same cost"
    return (
        f"{value:.1f}× the cost"
        if 0.1 <= value < 10
        else f"{value:.0f}× the cost"
        if value >= 10
        else f"{value:.2g}× the cost"
    )


def verdict(rung: Mapping[str, Any], reference: str, unit: str) -> str:
    """Return one sentence: the difference to the reference, whether it can be measured, and its price."""
    found = rung["difference"]
    text = f"{rung['label']}: {points(found['difference'])} points {interval(found['ci95'])} against {reference}, "
    text += f"p {probability(found['p_holm'])}: "
    if found["p_holm"] < MEASURABLE:
        text += "a measurable gain" if found["difference"] > 0 else "a measurable loss"
    elif found["difference"] > 0:
        text += "no measurable gain"
    else:
        text += "no gain"
    if found["p"] < MEASURABLE <= found["p_holm"]:
        text += f" (p {probability(found['p'])} before adjusting)"
    text += f" at {ratio(rung['cost_ratio'])} per query"
    more = rung["fixed"][unit] - found["reference_fixed"]
    return text + (f", plus {si(more)} {UNIT[unit]} once." if more > 0 else ".")


def headline(rungs: Sequence[Mapping[str, Any]]) -> str:
    """Return the finding of the whole ladder in a sentence."""
    first = rungs[0]
    if len(rungs) == 1:
        return f"{first['label']} answers {accuracy(first)} of {first['n']} questions right."
    best = max(rungs, key=lambda rung: rung["accuracy"])  # the first of equals
    if best is first or best["over_first"]["ci95"][0] <= 0:
        return f"Nothing measurably beats {first['label']} ({accuracy(first)}, n = {first['n']})."
    gain = best["over_first"]
    text = f"{best['label']} is the most accurate: {accuracy(best)}, {points(gain['difference'])} points "
    return text + f"{interval(gain['ci95'])} above {first['label']} ({percent(first['accuracy'])}), n = {first['n']}."


def steps(rungs: Sequence[Mapping[str, Any]]) -> str:
    """Return which steps gained, lost, or did neither measurably."""
    told = []
    changed = [rung for rung in rungs[1:] if rung["difference"]["p_holm"] < MEASURABLE]
    for name, found in (
        ("Measurable gains, step by step", [rung for rung in changed if rung["difference"]["difference"] > 0]),
        ("Measurable losses", [rung for rung in changed if rung["difference"]["difference"] < 0]),
        ("No measurable gain", [rung for rung in rungs[1:] if rung not in changed]),
    ):
        listed = "; ".join(f"{rung['label']} {points(rung['difference']['difference'])}" for rung in found)
        told += [f"{name}: {listed}."] if found else []
    return " ".join(told)


def across(tables: Sequence[Mapping[str, Any]]) -> str:
    """Return the finding over several tasks: on which of them something gained or lost measurably."""
    told = []
    for name, sign in (("Measurable gains", 1), ("Measurable losses", -1)):
        found = [
            f"{table['task']} ({rung['label']} {points(rung['difference']['difference'])})"
            for table in tables
            for rung in table["rungs"][1:]
            if rung["difference"]["p_holm"] < MEASURABLE and sign * rung["difference"]["difference"] > 0
        ]
        told += [f"{name}: {'; '.join(found)}."] if found else []
    return f"{len(tables)} tasks. " + (" ".join(told) or "No measurable difference on any of them.")


def measured(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a task measures beside accuracy, rung by rung."""
    return [
        f"{rung['label']}: "
        + "; ".join(
            f"{name} {percent(found['value'])} {interval(found['ci95'])}" for name, found in rung["measures"].items()
        )
        + "."
        for rung in rungs
        if rung["measures"]
    ]


def forgetting_sentence(found: Mapping[str, Any]) -> str:
    """Return how much a model forgot (or gained) on general tasks, and whether that is beyond doubt."""
    low, high = found["ci95"]
    lost, most = found["forgetting"] >= 0, found["most"]
    bounds = [low, high] if lost else [-high, -low]
    text = (
        f"{found['model']} {'forgot' if lost else 'gained'} {abs(100 * found['forgetting']):.1f} points {interval(bounds)}"
    )
    text += "" if bounds[0] > 0 else ", not measurably," if found["forgetting"] else ""
    text += f" in the mean of {found['tasks']} general task" + ("s" if found["tasks"] > 1 else "")
    return text + (f", most on {most['task']} ({points(-most['forgetting'])})." if most["forgetting"] > 0 else ".")


def break_even_sentence(
    found: Mapping[str, Any], rung: Mapping[str, Any], other: Mapping[str, Any] | None, unit: str
) -> str:
    """Return when a method's fixed cost has paid against another of equal or lower accuracy."""
    if other is None:
        return f"{rung['label']} has nothing to pay back against: every method with less to pay once is more accurate."
    once = f"{si(found['more_once'])} {UNIT[unit]} more once"
    against = f"{other['label']} ({percent(rung['accuracy'])} against {percent(other['accuracy'])})"
    saved = found["saved_per_query"]
    if found["queries"] is not None:
        after = f"{rung['label']} pays after {count(found['queries'])} queries"
        return f"{after} against {against}: {once}, {si(saved)} less per query."
    more = si(-saved)
    price = "the same per query" if more == "0" else f"{more} more per query"
    gain = rung["accuracy"] - other["accuracy"]
    buys = f"what it buys is {points(gain)} points" if gain > 0 else "and it is no more accurate"
    return f"{rung['label']} never pays back against {against}: {once} and {price}; {buys}."


def budget_notes(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how often the budget ended a method; nothing of those that it never did."""
    return [
        f"The budget ended {rung['label']} on {percent(rung['budget_rate'])} of the questions: it answered with what it had."
        for rung in rungs
        if rung["budget_rate"]
    ]


def _signed(value: float, *, plus: bool) -> str:
    text = f"{abs(value):.1f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+" if plus else "") + text
