"""Words and n-grams of texts as numbers, for everything that compares texts.

A word is a run of letters and digits, case and Unicode form ignored; in scripts that write no spaces (Han, kana, Thai, …)
each character is one. Signs of arithmetic count where they stand between numbers or spaces: 3 + 4 is not 3 - 4.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hasher", "ngrams", "words"]

Hashes = NDArray[np.uint64]
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|(?<=[\s\d])[-+*/=<>^%×÷](?=[\s\d])")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well spread


def words(text: str) -> list[str]:
    """Return the words of a text in order."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Hasher:
    """Turns words into 64-bit numbers, the same in every process; remembers the words it has seen."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, found: list[str]) -> Hashes:
        """Return one number per word."""
        known = self._known
        for word in found:
            if word not in known:
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        return np.fromiter((known[word] for word in found), dtype=np.uint64, count=len(found))


def ngrams(hashes_W: Hashes, n: int) -> Hashes:
    """Return a number per n-gram: Σ_j w_{i+j} b^{n−1−j} mod 2⁶⁴; none if there are fewer than n words."""
    count = len(hashes_W) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    found = np.zeros(count, dtype=np.uint64)
    for j in range(n):
        found = found * _BASE + hashes_W[j : j + count]
    return found
