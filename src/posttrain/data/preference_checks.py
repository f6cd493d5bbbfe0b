"""Checks of judgements: is anything preferred, do rows contradict each other, does length decide; and who judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .findings import Report
from .preferences import answers_of, comparisons
from .question_rows import Asked
from .shapes import Normal, Preference, Ranking, Scored, Thumb

__all__ = ["annotators_of", "check_preferences"]

_LEAST = 20  # pairs that say something about length


def check_preferences(report: Report, known: Mapping[int, Normal | Asked]) -> None:
    """Find rows that prefer nothing, pairs present in both orders, and judgements that length predicts."""
    ranked = {n: it for n, it in known.items() if isinstance(it, Preference | Ranking | Scored)}
    pairs = {number: comparisons(judged) for number, judged in ranked.items()}
    same = [n for n, it in ranked.items() if isinstance(it, Preference) and it.chosen.strip() == it.rejected.strip()]
    report.add("error", "identical sides", "chosen and rejected are the same: nothing is preferred", same)
    tied = [n for n, found in pairs.items() if not found and n not in set(same)]
    report.add("warning", "all tied", "all answers are tied: nothing is preferred", tied)
    _both_orders(report, ranked, pairs)
    _length(report, ranked, pairs)
    thumbs = {n: it for n, it in known.items() if isinstance(it, Thumb)}
    _contradicted(report, thumbs)
    if thumbs:
        report.lengths["liked"] = round(sum(thumb.label for thumb in thumbs.values()) / len(thumbs), 4)


def _both_orders(
    report: Report,
    ranked: Mapping[int, Preference | Ranking | Scored],
    pairs: Mapping[int, Sequence[tuple[int, int, float]]],
) -> None:
    """The same two answers to the same prompt, once this way and once that: one of the rows is wrong, or it is a tie."""
    seen: dict[tuple[Any, str, str], int] = {}
    found: list[tuple[int, int]] = []
    for number, judged in ranked.items():
        texts = answers_of(judged)
        for better, worse, _ in pairs[number]:
            seen.setdefault((judged.prompt, texts[better], texts[worse]), number)
            other = seen.get((judged.prompt, texts[worse], texts[better]))
            if other is not None:
                found.append((other, number))
    if found:
        first, second = found[0]
        message = f"the same two answers in both orders, for example rows {first + 1} and {second + 1}: they cancel"
        report.add("warning", "both orders", message, list(dict.fromkeys(number for _, number in found)))


def _length(
    report: Report,
    ranked: Mapping[int, Preference | Ranking | Scored],
    pairs: Mapping[int, Sequence[tuple[int, int, float]]],
) -> None:
    sides = [
        (len(texts[b]), len(texts[w])) for n, it in ranked.items() for texts in [answers_of(it)] for b, w, _ in pairs[n]
    ]
    unequal = [better > worse for better, worse in sides if better != worse]
    if len(unequal) < _LEAST:
        return
    longer = sum(unequal) / len(unequal)
    report.lengths["chosen is the longer"] = round(longer, 4)
    if longer >= 0.8 or longer <= 0.2:
        kind, share = ("longer", longer) if longer >= 0.8 else ("shorter", 1 - longer)
        message = f"in {share:.0%} of the pairs the chosen side is the {kind} one: length would be learned"
        report.add("warning", "length", message, list(ranked), round(share * len(unequal)))


def _contradicted(report: Report, thumbs: Mapping[int, Thumb]) -> None:
    """One answer to one prompt, liked and not liked."""
    said: dict[tuple[Any, str], dict[bool, int]] = defaultdict(dict)
    for number, thumb in thumbs.items():
        said[thumb.prompt, thumb.completion].setdefault(thumb.label, number)
    both = [max(labels.values()) for labels in said.values() if len(labels) == 2]
    report.add("warning", "both orders", "the same answer liked and not liked: the rows cancel", sorted(both))


def annotators_of(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return what several annotators said of each row, from the rows' lists `annotators`; rows without one are left out.

    A place in the list is an annotator; None where one did not judge.
    """
    return [list(row["annotators"]) for row in rows if isinstance(row.get("annotators"), list | tuple)]
