"""How far a judge of pairs goes by place, length and its own hand, and how far by what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.types import Said
from .intervals import ratio
from .judging import position_bias
from .paired import mcnemar

__all__ = ["Compared", "judge_bias"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two texts a and b to one question, asked in both orders."""

    question: str
    label: float | None  # how probable it is that a is the better one, over both orders; None: could not be read
    said: tuple[Said, ...]  # which of the two shown was preferred, with a shown first and with b shown first
    p_first: tuple[float, ...] = ()  # the probability of the one shown first, likewise, where there is one
    lengths: tuple[int, int]  # of a and b, in any unit
    grades: tuple[float, float] | None = None  # what is right, if it is known
    own: tuple[bool, bool] = (False, False)  # whether the judge wrote a, and b


def judge_bias(compared: Sequence[Compared]) -> dict[str, Any]:
    """Return what the pairs say of their judge, as JSON values; shares over no pairs are None.

    `pairs` could be read, `unparsed` could not, `ties` have the label ½.

    `position`: as `position_bias` has it (flips: pairs whose two orders disagree; bias: (first − second)/pairs, of pairs
    won by one place in both orders), with `first_share`, how often the one shown first won among all verdicts with a winner,
    `consistency` = 1 − flip rate, and `p_first`, the mean probability of the first; without a preference for a place both
    are ½. `length`: among labelled pairs of unequal length without a tie, how often the longer one is preferred, and beside
    it how often the longer one is right among those of unequal grade: a judge of right and wrong prefers it as often.
    `self`: among pairs of which the judge wrote one, how often it prefers its own; `equal_grades`: the same among those of
    equal grade, where nothing but the hand should tell. `gold`: among labelled pairs of unequal grades, how often the
    label is for the better one, a tie counting half.

    Intervals take the pairs of a question as one cluster (`intervals.ratio`); `p` is the exact sign test against ½.
    Sources: position: Zheng et al. 2023 (2306.05685), table 2; the same as flips: Lee et al. 2023 (2309.00267); length and
    own hand: Zheng et al., section 3.3.
    """
    read = [pair for pair in compared if pair.label is not None]
    decided = [pair for pair in read if pair.label != 0.5]
    unequal = [pair for pair in decided if pair.lengths[0] != pair.lengths[1]]
    graded = [pair for pair in read if pair.grades is not None and pair.grades[0] != pair.grades[1]]
    longer_right = [
        (pair, _side(_longer(pair), _right(pair))) for pair in graded if pair.lengths[0] != pair.lengths[1]
    ]  # fmt: skip
    return {
        "pairs": len(read),
        "unparsed": len(compared) - len(read),
        "ties": len(read) - len(decided),
        "position": _position(compared),
        "length": {
            "longer_preferred": _share([(pair, _side(_longer(pair), _preferred(pair))) for pair in unequal]),
            "longer_is_right": _share(longer_right),
        },
        "self": _self(read),
        "gold": _share([(pair, _agrees(pair)) for pair in graded]),
    }


def _position(compared: Sequence[Compared]) -> dict[str, Any]:
    both = [pair for pair in compared if pair.said]
    found = asdict(position_bias([pair.said for pair in both]))
    found["flip_ci95"] = list(found["flip_ci95"])
    shown = [(pair, float(said == "first")) for pair in both for said in pair.said if said in ("first", "second")]
    first = _share(shown)
    probabilities = [p for pair in both for p in pair.p_first]
    mean = sum(probabilities) / len(probabilities) if probabilities else None
    return {
        **found,
        "consistency": 1 - found["flip_rate"] if found["pairs"] else None,
        "first_share": first["share"],
        "first_share_ci95": first["ci95"],
        "p_first": None if mean is None else round(mean, 4),
    }


def _self(read: Sequence[Compared]) -> dict[str, Any]:
    if all(pair.own[0] == pair.own[1] for pair in read):
        whose = "is the labeller's own" if any(pair.own[0] for pair in read) else "is by another model"
        return {"measured": False, "why": f"every response {whose}: no pair has one of each"}
    one = [pair for pair in read if pair.own[0] != pair.own[1] and pair.label != 0.5]
    mine = [(pair, float(pair.own[0] == (_preferred(pair) == "a"))) for pair in one]
    return {
        "measured": True,
        "own_preferred": _share(mine),
        "equal_grades": _share([(pair, v) for pair, v in mine if pair.grades and pair.grades[0] == pair.grades[1]]),
    }


def _share(found: Sequence[tuple[Compared, float]]) -> dict[str, Any]:
    """Return the mean of values of 0, ½ and 1, its interval by question, how many there are, and the sign test against ½."""
    if not found:
        return {"share": None, "ci95": None, "pairs": 0, "p": None}
    questions: dict[str, tuple[float, float]] = {}
    for pair, value in found:
        right, of = questions.get(pair.question, (0.0, 0.0))
        questions[pair.question] = (right + value, of + 1)
    values = [value for _, value in found]
    return {
        "share": sum(values) / len(values),
        "ci95": list(ratio(list(questions.values()))),
        "pairs": len(values),
        "p": mcnemar(sum(v > 0.5 for v in values), sum(v < 0.5 for v in values)),
    }


Side = Literal["a", "b"]


def _preferred(pair: Compared) -> Side:
    assert pair.label is not None
    return "a" if pair.label > 0.5 else "b"


def _longer(pair: Compared) -> Side:
    return "a" if pair.lengths[0] > pair.lengths[1] else "b"


def _right(pair: Compared) -> Side:
    assert pair.grades is not None
    return "a" if pair.grades[0] > pair.grades[1] else "b"


def _side(one: Side, other: Side) -> float:
    return float(one == other)


def _agrees(pair: Compared) -> float:
    return 0.5 if pair.label == 0.5 else _side(_preferred(pair), _right(pair))
