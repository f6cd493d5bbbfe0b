"""Whether training rows hold what an evaluation asks: word n-grams that both have (13 words, as Brown et al. 2020 count).

A question shorter than n words is looked for as a whole if it has 8 or more; a shorter one counts only if a turn of a row
is that question and nothing else. n-grams that many questions share are the wording of the task, not a leaked question;
they are left out and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .words import Hasher, ngrams, words

__all__ = ["Hit", "Overlap", "Question", "overlap"]

_SHORT = 8  # words of a question that can be told from chance
_COMMON = 10  # questions that share an n-gram: more are the task's wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A text of the evaluation, by its example's id."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A row that holds an n-gram of a question: the row's number from 0, the example, the words both have."""

    row: int
    example: str
    shared: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """All hits, one per row and example, with what was compared."""

    hits: tuple[Hit, ...]
    questions: int
    n: int
    wording: int  # n-grams left out because many questions share them

    @property
    def rows(self) -> int:
        """How many rows were hit."""
        return len({hit.row for hit in self.hits})

    @property
    def examples(self) -> int:
        """How many of the evaluation's examples were hit."""
        return len({hit.example for hit in self.hits})


def overlap(
    turns_by_row: Sequence[Sequence[str]],
    questions: Sequence[Question],
    *,
    n: int = 13,
    hasher: Hasher | None = None,
    advance: Callable[[], object] | None = None,
) -> Overlap:
    """Return which rows, given as the texts of their turns, hold n-grams of which questions."""
    hasher = hasher or Hasher()
    index = _Index(questions, n, hasher)
    hits: dict[tuple[int, str], Hit] = {}
    for row, turns in enumerate(turns_by_row):
        for turn in turns:
            for example, shared in index.find(words(turn)):
                hits.setdefault((row, example), Hit(row=row, example=example, shared=shared))
        if advance is not None:
            advance()
    return Overlap(hits=tuple(hits.values()), questions=len({q.id for q in questions}), n=n, wording=index.wording)


class _Index:
    """The questions' n-grams by length, sorted for search, and the short questions as they are."""

    def __init__(self, questions: Sequence[Question], n: int, hasher: Hasher) -> None:
        self._hasher = hasher
        self._whole: dict[str, set[str]] = defaultdict(set)
        self._texts: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)  # (length, n-gram) -> id, words
        shared: Counter[tuple[int, int]] = Counter()
        for question in questions:
            found = words(question.text)
            if len(found) < min(_SHORT, n):
                self._whole[" ".join(found)].add(question.id)
                continue
            length = min(n, len(found))
            for gram in set(ngrams(hasher(found), length).tolist()):
                self._texts[length, gram].append((question.id, " ".join(found)))
        for key, told in self._texts.items():
            shared[key] = len({example for example, _ in told})
        asked = len({question.id for question in questions})
        most = max(2, min(_COMMON, asked // 4))
        common = [key for key, count in shared.items() if count > most]
        for key in common:
            del self._texts[key]
        self.wording = len(common)
        grams: dict[int, list[int]] = defaultdict(list)
        for length, gram in self._texts:
            grams[length].append(gram)
        self._sorted: dict[int, NDArray[np.uint64]] = {
            length: np.sort(np.array(found, dtype=np.uint64)) for length, found in grams.items()
        }

    def find(self, found: list[str]) -> list[tuple[str, str]]:
        """Return the examples that share an n-gram with a turn's words, each with the words they share."""
        hits = [(example, " ".join(found)) for example in sorted(self._whole.get(" ".join(found), ()))] if found else []
        hashes_W = self._hasher(found)
        for length, known in self._sorted.items():
            grams = ngrams(hashes_W, length)
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            for begin in np.flatnonzero(known[at] == grams).tolist():
                shared = " ".join(found[begin : begin + length])
                told = self._texts[length, int(grams[begin])]
                hits += [(example, shared) for example, text in told if f" {shared} " in f" {text} "]
        return hits
