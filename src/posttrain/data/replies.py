"""Choosing among several replies to one question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.seeds import rng

__all__ = ["Choose", "choose", "distinct", "same_text"]

Choose = Literal["random", "shortest", "longest"]


def same_text(text: str) -> str:
    """Return what texts have in common that differ in white space or case alone."""
    return " ".join(text.split()).casefold()


def distinct(texts: Sequence[str]) -> list[str]:
    """Return the texts without those that differ from an earlier one in white space or case alone."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(same_text(text), text)
    return list(found.values())


def choose(texts: Sequence[str], count: int, how: Choose, *, seed: int, example: str) -> list[str]:
    """Return `count` of the texts: by the seed, or the shortest or longest (in characters; ties by the text)."""
    if how == "random":
        return rng(seed, "replies", example).sample(sorted(texts), min(count, len(texts)))
    return sorted(texts, key=lambda text: (len(text) if how == "shortest" else -len(text), text))[:count]
