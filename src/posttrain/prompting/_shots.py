"""Drawing few-shot examples: a pure function of (seed, task, example), never a copy of the question that is asked."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.seeds import rng
from ..core.types import Example

__all__ = ["draw_shots", "normalised"]

_N = 13  # words: the usual length of contamination checks (Brown et al. 2020, appendix C)
_BOILERPLATE = 4  # a 13-gram found in more questions than this is the task's own wording


def draw_shots(
    task: Task, example: Example, *, k: int, seed: int, common: bool, usable: Callable[[Example], bool]
) -> list[Example]:
    """Return k training examples to show before `example`.

    Each example has its own draw, from `rng(seed, task, example.id)`: it does not depend on which other examples are
    evaluated, in which order or on how many machines. With `common` all examples share one draw: the engine computes the
    prefix once, but the measured accuracy then depends on that one draw. An exact or near copy of the question is
    skipped and the next of the same draw is taken.

    Copies: questions of the same normalised text; and, for questions of 13 words or more, those sharing 13 words in a row,
    unless more than four training questions share these words too (the task's own wording). Short questions differ by
    a digit and are still different questions, so for them only identical text counts.

    Raises:
        ConfigError: the task has fewer than k usable training examples.
    """
    pool = task.examples("train")
    source = rng(seed, "shots", task.name) if common else rng(seed, "shots", task.name, example.id)
    shots: list[Example] = []
    for index in _permutation(len(pool), source):
        if len(shots) == k:
            break
        shot = pool[index]
        if shot.id != example.id and usable(shot) and not _copies(task, pool, shot, example):
            shots.append(shot)
    if len(shots) < k:
        raise ConfigError(f"task '{task.name}' has only {len(shots)} usable training examples for k={k} shots: lower k")
    return shots


def _permutation(n: int, source: random.Random) -> Iterator[int]:
    """Yield 0 … n-1 in random order, without shuffling all of a long list for the first few."""
    swapped: dict[int, int] = {}
    for i in range(n):
        j = source.randrange(i, n)
        yield swapped.get(j, j)
        swapped[j] = swapped.get(i, i)


def _text(example: Example) -> str:
    return example.question or "\n".join(message.content for message in example.messages)


def normalised(text: str) -> str:
    """Return text for comparison: compatibility characters folded, lower case, single spaces, no closing punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".?!:= ")


@lru_cache(maxsize=16384)
def _grams(text: str) -> frozenset[int]:
    """Return the hashes of a text's 13-grams of words and signs."""
    words = re.findall(r"\w+|[^\w\s]", normalised(text))
    return frozenset(hash(tuple(words[i : i + _N])) for i in range(len(words) - _N + 1))


def _copies(task: Task, pool: Sequence[Example], shot: Example, example: Example) -> bool:
    shown, asked = _text(shot), _text(example)
    if normalised(shown) == normalised(asked):
        return True
    shared = _grams(shown) & _grams(asked)
    if not shared:
        return False
    counts = _counts(task, pool)
    return any(counts[gram] <= _BOILERPLATE for gram in shared)


_counted: dict[tuple[str, str], Counter[int]] = {}


def _counts(task: Task, pool: Sequence[Example]) -> Counter[int]:
    """Return in how many training questions each 13-gram stands (counted once per task)."""
    identity = (task.name, task.version)
    if identity not in _counted:
        _counted.clear()  # one task at a time: the table of a long corpus is large
        _counted[identity] = Counter(gram for item in pool for gram in _grams(_text(item)))
    return _counted[identity]
