"""A pool: for every question several samples, graded, keyed for voting and priced. All that curves are computed from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.seeds import derive

__all__ = ["Array", "Indices", "Item", "Scores", "answers_of", "orders_of", "sample_orders"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question's samples: voting key (None: unparsed), graded score in [0, 1], and what each cost on its own.

    `prompt_*` is paid once however many samples are drawn; `tokens` and `flops` are each sample's own.
    """

    id: str
    keys: tuple[str | None, ...]
    right: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]
    prompt_tokens: float = 0.0
    prompt_flops: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.right) == len(self.tokens) == len(self.flops) > 0:
            raise ValueError(f"question '{self.id}': keys, scores, tokens and FLOPs are not one of each for every sample")

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A verifier's opinion of one question's samples (None: no score), and what each scoring cost."""

    values: tuple[float | None, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]


def sample_orders(n: int, length: int, draws: int, *, seed: int = 0) -> Indices:
    """Return orders in which n samples could have been drawn, cut after `length`: all of them when few, else `draws`.

    Shape [orders, length]. All `n!/(n − length)!` of them weigh the same, so a mean over the rows is the exact expectation
    over orders; a seeded draw estimates it. A prefix of a row of length k is a uniformly drawn ordered k-subset, so one
    set of orders serves every k and every rule, and makes their comparison a paired one.
    """
    if not 1 <= length <= n:
        raise ValueError(f"orders of {length} need between 1 and {n} samples")
    if math.perm(n, length) <= draws:
        return np.array(list(itertools.permutations(range(n), length)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    return np.argsort(generator.random((draws, n)), axis=1)[:, :length].astype(np.int64)


def orders_of(item: Item, length: int, draws: int, *, seed: int = 0) -> Indices:
    """Return `sample_orders` of a question's samples, drawn for this question alone."""
    return sample_orders(item.n, length, draws, seed=derive(seed, "orders", item.id))


def answers_of(keys: Sequence[str | None], right: Sequence[float]) -> tuple[NDArray[np.bool_], Array]:
    """Return who gave which answer [samples, answers] and each answer's score, the mean over its samples [answers]."""
    names = list(dict.fromkeys(key for key in keys if key is not None))
    given: Any = np.array([[key == name for name in names] for key in keys], dtype=bool).reshape(len(keys), len(names))
    worth = (given * np.asarray(right, dtype=float)[:, None]).sum(axis=0) / np.maximum(given.sum(axis=0), 1)
    return given, worth
