"""How often each answer occurs, where answers are labels."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

__all__ = ["label_balance"]

_LAST_LINE = re.compile(r"(?:^|\n)\s*Answer:\s*(?P<label>[^\n]{1,60})\s*$")
_SHORT = 40  # characters of an answer that may be a label as a whole
_ROWS = 20  # fewer say nothing
_REPEATED = 4  # rows per label, on average, from which answers are labels and not just short
_LABELS = 20  # that make up 80% of the rows; of more kinds, answers are not labels


def label_balance(answers: Sequence[str | None]) -> dict[str, Any] | None:
    """Return the shares of labels: the line `Answer: X` that ends an answer, or the whole of a short one.

    None unless at least 80% of the rows have one, and 20 or fewer make up 80% of these, four or more rows each on average.
    `evenness` is the entropy of the shares divided by its maximum, log(number of labels): 1 when all are equally frequent.
    """
    found = [label for answer in answers if answer is not None and (label := _label(answer))]
    counts = Counter(found)
    if len(found) < max(_ROWS, 0.8 * len(answers)):
        return None
    sums = list(accumulate(count for _, count in counts.most_common()))
    frequent = bisect_left(sums, 0.8 * len(found)) + 1
    if frequent > _LABELS or sums[frequent - 1] < _REPEATED * frequent:
        return None
    shares = {label: count / len(found) for label, count in counts.most_common()}
    entropy = -math.fsum(share * math.log(share) for share in shares.values())
    evenness = entropy / math.log(len(shares)) if len(shares) > 1 else 0.0
    return {
        "labels": len(shares),
        "largest": round(max(shares.values()), 4),
        "evenness": round(evenness, 4),
        "shares": {label: round(share, 4) for label, share in list(shares.items())[:_LABELS]},
    }


def _label(answer: str) -> str | None:
    text = answer.strip()
    matched = _LAST_LINE.search(text)
    if matched is not None:
        return matched["label"].strip()
    return text if len(text) <= _SHORT and "\n" not in text else None
