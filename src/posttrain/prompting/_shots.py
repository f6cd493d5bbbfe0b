"""Drawing few-shot examples: a pure function of (seed, task, example), never a copy of the question that is asked."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.seeds import rng
from ..core.types import Example
from ._nearest import Embedding, index_of, text_of

__all__ = ["Draw", "Order", "Select", "copies_of", "normalised", "permutation"]

_N = 13  # words: the usual length of contamination checks (Brown et al. 2020, appendix C)
_BOILERPLATE = 4  # a 13-gram found in more questions than this is the task's own wording


Select = Literal["random", "fixed", "balanced", "nearest"]
Order = Literal["drawn", "reversed", "nearest_last"] | Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How shots are chosen and in which order they are shown.

    `select`:
        random: k training examples by `rng(seed, task, example.id)`: each example has its own draw, which does not depend
            on which other examples are evaluated, in which order or on how many machines;
        fixed: the first k of the training split, the same for every example and seed;
        balanced: as random, but answers take turns: their counts differ by one at most, as long as there are examples;
        nearest: the k whose questions are most similar to the one asked, the most similar first (see `_nearest`).
    With `common` all examples share one draw: the engine computes the prefix once, but the measured accuracy then depends
    on that one draw.

    `order`: as drawn, reversed, the most similar last (next to the question), or shuffled by a number: the same
    permutation of places for every example.
    """

    k: int
    select: Select = "random"
    common: bool = False
    embedding: Embedding = "tfidf"
    order: Order = "drawn"

    def __post_init__(self) -> None:
        if self.select == "nearest" and self.common:
            raise ConfigError(
                "select=nearest chooses for each question anew, and common=true one set for all: leave one out"
            )

    def shots(self, task: Task, example: Example, *, seed: int, usable: Callable[[Example], bool]) -> list[Example]:
        """Return the k training examples to show before `example`, first to last.

        An exact or near copy of the question is skipped and the next in line is taken. Copies: questions of the same
        normalised text; and, for questions of 13 words or more, those sharing 13 words in a row, unless more than four
        training questions share these words too (the task's own wording). Short questions differ by a digit and are
        still different questions, so for them only identical text counts.

        Raises:
            ConfigError: the task has fewer than k usable training examples.
        """
        pool = task.examples("train")

        def fits(place: int) -> bool:
            shot = pool[place]
            return shot.id != example.id and usable(shot) and not _copies(task, pool, shot, example)

        shots = [pool[place] for place in itertools.islice(self._line(task, pool, example, seed, fits), self.k)]
        if len(shots) < self.k:
            raise ConfigError(
                f"task '{task.name}' has only {len(shots)} usable training examples for k={self.k} shots: lower k"
            )
        return self._ordered(task, pool, example, shots)

    def _line(
        self, task: Task, pool: Sequence[Example], example: Example, seed: int, fits: Callable[[int], bool]
    ) -> Iterator[int]:
        """Yield places in the pool that fit, the first choice first."""
        if self.select == "fixed":
            return filter(fits, range(len(pool)))
        if self.select == "nearest":
            return filter(fits, index_of(task, pool, self.embedding).nearest(text_of(example)))
        source = rng(seed, "shots", task.name) if self.common else rng(seed, "shots", task.name, example.id)
        drawn = _permutation(len(pool), source)
        return filter(fits, drawn) if self.select == "random" else _by_turns(drawn, _labels(task, pool), fits)

    def _ordered(self, task: Task, pool: Sequence[Example], example: Example, shots: list[Example]) -> list[Example]:
        if self.order == "reversed":
            return shots[::-1]
        if self.order == "nearest_last":
            likeness = index_of(task, pool, self.embedding).similarities(text_of(example))
            place = {item.id: at for at, item in enumerate(pool)}
            return sorted(shots, key=lambda shot: likeness[place[shot.id]])
        if isinstance(self.order, int):
            return [shots[at] for at in permutation(len(shots), self.order)]
        return shots


def permutation(k: int, number: int) -> list[int]:
    """Return the permutation of k places that `order=number` names."""
    places = list(range(k))
    rng(number, "order", k).shuffle(places)
    return places


def _by_turns(drawn: Iterator[int], labels: Sequence[str], fits: Callable[[int], bool]) -> Iterator[int]:
    """Yield a place that fits of each label in turn, labels in the order of their first place; used up ones drop out."""
    queues: dict[str, deque[int]] = {}
    for place in drawn:
        queues.setdefault(labels[place], deque()).append(place)
    while queues:
        for label, queue in list(queues.items()):
            while queue and not fits(queue[0]):
                queue.popleft()
            if queue:
                yield queue.popleft()
            else:
                del queues[label]


def _permutation(n: int, source: random.Random) -> Iterator[int]:
    """Yield 0 … n-1 in random order, without shuffling all of a long list for the first few."""
    swapped: dict[int, int] = {}
    for i in range(n):
        j = source.randrange(i, n)
        yield swapped.get(j, j)
        swapped[j] = swapped.get(i, i)


def normalised(text: str) -> str:
    """Return text for comparison: compatibility characters folded, lower case, single spaces, no closing punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".?!:= ")


@lru_cache(maxsize=16384)
def _grams(text: str) -> frozenset[int]:
    """Return the hashes of a text's 13-grams of words and signs."""
    words = re.findall(r"\w+|[^\w\s]", normalised(text))
    return frozenset(hash(tuple(words[i : i + _N])) for i in range(len(words) - _N + 1))


def _copies(task: Task, pool: Sequence[Example], shot: Example, example: Example) -> bool:
    shown, asked = text_of(shot), text_of(example)
    if normalised(shown) == normalised(asked):
        return True
    shared = _grams(shown) & _grams(asked)
    if not shared:
        return False
    counts = _counts(task, pool)
    return any(counts[gram] <= _BOILERPLATE for gram in shared)


def copies_of(task: Task, asked: Sequence[Example]) -> Callable[[Example], bool]:
    """Return a test: is a training example an exact or near copy of one of these questions, by the rules of `Draw.shots`?"""
    pool = task.examples("train")
    ids = {example.id for example in asked}
    texts = {normalised(text_of(example)) for example in asked}
    grams = {gram for example in asked for gram in _grams(text_of(example))}

    def copied(shot: Example) -> bool:
        if shot.id in ids or normalised(text_of(shot)) in texts:
            return True
        shared = _grams(text_of(shot)) & grams
        return bool(shared) and any(_counts(task, pool)[gram] <= _BOILERPLATE for gram in shared)

    return copied


_counted: dict[tuple[str, str], Counter[int]] = {}


def _counts(task: Task, pool: Sequence[Example]) -> Counter[int]:
    """Return in how many training questions each 13-gram stands (counted once per task)."""
    identity = (task.name, task.version)
    if identity not in _counted:
        _counted.clear()  # one task at a time: the table of a long corpus is large
        _counted[identity] = Counter(gram for item in pool for gram in _grams(text_of(item)))
    return _counted[identity]


_labelled: dict[tuple[str, str, int], list[str]] = {}


def _labels(task: Task, pool: Sequence[Example]) -> list[str]:
    """Return the answer's key of each training example ("" without an answer), worked out once per task."""
    identity = (task.name, task.version, len(pool))
    if identity not in _labelled:
        _labelled.clear()
        _labelled[identity] = ["" if item.answer is None else task.key(item.answer) for item in pool]
    return _labelled[identity]
