"""A labeller's bias in sentences, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["told"]


def told(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what `stats.feedback.judge_bias` found, each kind of bias in a sentence; what could not be measured is said."""
    place, length, own = found["position"], found["length"], found["self"]
    notes = [
        f"the labeller judged {found['pairs']} pairs, each in both orders: {found['ties']} ties; {found['unparsed']} more "
        "could not be read."
    ]
    if place["pairs"]:
        low, high = place["flip_ci95"]
        notes.append(
            f"position: {place['flip_rate']:.1%} of the pairs [{low:.1%}, {high:.1%}] changed their verdict with the order; "
            f"the response shown first won {_percent(place['first_share'])} of the verdicts (50% without a preference)."
        )
    if length["longer_preferred"]["pairs"]:
        notes.append(
            f"length: the longer response is preferred in {_share(length['longer_preferred'])}; by the task's grades it is "
            f"the right one in {_share(length['longer_is_right'])}."
        )
    if own["measured"]:
        notes.append(
            f"its own hand: its own response is preferred in {_share(own['own_preferred'])}; where both are graded alike, "
            f"in {_share(own['equal_grades'])}."
        )
    else:
        notes.append(f"its own hand: not measured, for {own['why']}.")
    if found["gold"]["pairs"]:
        notes.append(f"agreement with the task's grades, where they differ: {_share(found['gold'])}. They decide no label.")
    return tuple(notes)


def _share(found: Mapping[str, Any]) -> str:
    if not found["pairs"]:
        return "no pair"
    low, high = found["ci95"]
    return f"{found['share']:.1%} of {found['pairs']} pairs [{low:.1%}, {high:.1%}]"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
