"""Near-duplicates among many texts, in time that grows with their number and not with its square.

Each text is the set of its word 3-grams. K = 120 minima of random hash functions of the set form its signature; two
signatures agree in a share of places that estimates J(A, B) = |A ∩ B| / |A ∪ B| with standard error √(J(1 − J)/K)
(Broder 1997). Texts that agree in all 5 numbers of any of 24 bands are compared: a pair with J = 0.8 is missed with
probability (1 − 0.8⁵)²⁴ < 0.0001. What is compared is decided by the estimate and, near or above the threshold, by
the exact J. Where more than 6 texts share a band, each is compared with the first 5 of them only; texts that are near
duplicates of the same text are one group all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.seeds import rng
from .words import Hasher, ngrams, words

__all__ = ["Sketches", "near_duplicates", "self_similarity", "sketch"]

_K, _ROWS = 120, 5  # hash functions; numbers in a band
_SHINGLE = 3
_FIRST = 5  # members of a crowded band that the others are compared with
_SLACK = 0.15  # four standard errors of the estimate at J = 0.8
_CHUNK = 50_000  # pairs estimated at once


@dataclass(frozen=True, slots=True)
class Sketches:
    """Texts with their signatures: `signatures_NK`."""

    texts: Sequence[str]
    signatures_NK: NDArray[np.uint32]
    hasher: Hasher

    def shingles(self, i: int) -> NDArray[np.uint64]:
        """Return the set of 3-grams of a text, sorted."""
        return _shingles(self.texts[i], self.hasher)


def sketch(texts: Sequence[str], *, hasher: Hasher | None = None, advance: Callable[[], object] | None = None) -> Sketches:
    """Return the signatures of texts; `advance` is called after each."""
    hasher = hasher or Hasher()
    draw = rng(0, "minhash")
    odd_K = np.array([draw.getrandbits(64) | 1 for _ in range(_K)], dtype=np.uint64)[:, None]
    plus_K = np.array([draw.getrandbits(64) for _ in range(_K)], dtype=np.uint64)[:, None]
    signatures_NK = np.empty((len(texts), _K), dtype=np.uint32)
    for i, text in enumerate(texts):
        shingles_S = _shingles(text, hasher)
        signatures_NK[i] = ((shingles_S[None, :] * odd_K + plus_K) >> np.uint64(32)).min(axis=1)
        if advance is not None:
            advance()
    return Sketches(texts, signatures_NK, hasher)


def near_duplicates(sketches: Sketches, *, threshold: float = 0.8) -> list[tuple[int, ...]]:
    """Return groups of texts that are connected by pairs with J ≥ threshold, each sorted, in order of their first."""
    parent = list(range(len(sketches.texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[int, NDArray[np.uint64]] = {}
    for i, j in _likely(sketches.signatures_NK, threshold):
        a, b = root(i), root(j)
        if a == b:
            continue
        for k in (i, j):
            if k not in seen:
                seen[k] = sketches.shingles(k)
        if _jaccard(seen[i], seen[j]) >= threshold:
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for i in range(len(parent)):
        groups.setdefault(root(i), []).append(i)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def self_similarity(sketches: Sketches, *, pairs: int = 5000) -> float | None:
    """Return the mean estimated J of pairs of texts drawn at random; None for fewer than two texts."""
    count = len(sketches.texts)
    if count < 2:
        return None
    draw = rng(0, "self-similarity")
    drawn = [draw.sample(range(count), 2) for _ in range(pairs)]
    left_P, right_P = np.array(drawn).T
    return float((sketches.signatures_NK[left_P] == sketches.signatures_NK[right_P]).mean())


def _shingles(text: str, hasher: Hasher) -> NDArray[np.uint64]:
    hashes_W = hasher(words(text))
    if not len(hashes_W):  # nothing but signs: the text itself
        hashes_W = hasher([text])
    return np.unique(ngrams(hashes_W, min(_SHINGLE, len(hashes_W))))


def _likely(signatures_NK: NDArray[np.uint32], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs that share a band and whose estimate is near or above the threshold."""
    count = len(signatures_NK)
    codes = [np.empty(0, dtype=np.int64)]
    for band in range(0, _K, _ROWS):
        keys_N = ngrams(signatures_NK[:, band : band + _ROWS].astype(np.uint64).reshape(-1), _ROWS)[::_ROWS]
        order = np.argsort(keys_N, kind="stable")
        edges = np.flatnonzero(np.diff(keys_N[order])) + 1
        members = [group for group in np.split(order, edges) if len(group) > 1]
        found = [i * count + j for group in members for i, j in _to_compare(group.tolist())]
        codes.append(np.unique(np.array(found, dtype=np.int64)))
    pairs_P = np.unique(np.concatenate(codes))
    for begin in range(0, len(pairs_P), _CHUNK):
        left, right = np.divmod(pairs_P[begin : begin + _CHUNK], count)
        near = (signatures_NK[left] == signatures_NK[right]).mean(axis=1) >= threshold - _SLACK
        yield from zip(left[near].tolist(), right[near].tolist(), strict=True)


def _to_compare(group: list[int]) -> Iterator[tuple[int, int]]:
    for at, j in enumerate(group):
        for i in group[: min(at, _FIRST)]:
            yield i, j


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
