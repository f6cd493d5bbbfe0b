"""How varied texts are, in figures that do not simply fall with the number of texts."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.seeds import rng
from .words import words

__all__ = ["distinct", "segmental_type_token_ratio"]

_SEGMENT = 100  # words


def distinct(texts: Sequence[str], n: int, *, most: int = 1000) -> float | None:
    """Return distinct-n: different n-grams / all n-grams (Li et al. 2016), over at most `most` texts drawn at random.

    The drawn number is fixed because the ratio falls with the amount of text. None where no text has n words.
    """
    drawn = rng(0, "distinct").sample(list(texts), most) if len(texts) > most else texts
    total, found = 0, set()
    for text in drawn:
        listed = words(text)
        grams = [tuple(listed[i : i + n]) for i in range(len(listed) - n + 1)]
        total += len(grams)
        found.update(grams)
    return len(found) / total if total else None


def segmental_type_token_ratio(texts: Sequence[str], *, most: int = 1000) -> float | None:
    """Return the mean over segments of 100 words of different words / words; None where there is less than one segment."""
    drawn = rng(0, "distinct").sample(list(texts), most) if len(texts) > most else texts
    running = [word for text in drawn for word in words(text)]
    segments = [running[i : i + _SEGMENT] for i in range(0, len(running) - _SEGMENT + 1, _SEGMENT)]
    return sum(len(set(segment)) for segment in segments) / (_SEGMENT * len(segments)) if segments else None
