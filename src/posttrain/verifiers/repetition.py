"""Scores how much a text repeats itself, as a penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import ConfigError
from ..core.types import Example, Score
from ..data.words import words
from ._thought import THINK, Part, Tags, check_tags, part_of

__all__ = ["Repetition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The share of n-grams of words that stood in the text before, as a penalty in [-max, 0].

    s = -max (1 - |different n-grams| / |n-grams|); 0 for a text of fewer than n words

    The n-gram repetition penalty of Yeo et al. 2025 (arXiv 2502.03373), appendix C.2, where it falls on each repeated token;
    as one number a text it is in open-r1. A word is as in `data.words`: case and punctuation do not matter.

    Args:
        n: words of an n-gram.
        max: what a text that were nothing but repetition would cost.
        part: what is looked at: `all` of a text, its `reasoning` (all without a closing tag), or the `answer` behind it.
        tags: around the reasoning.
    """

    oracle: ClassVar[bool] = False

    n: int = 3
    max: float = 1.0
    part: Part = "all"
    tags: Tags = THINK

    def __post_init__(self) -> None:
        where = "verifier 'repetition'"
        check_tags(self.tags, where)
        if self.n < 1:
            raise ConfigError(f"{where}: n = {self.n} must be at least 1")
        if not 0 < self.max < float("inf"):
            raise ConfigError(f"{where}: max = {self.max:g} must be positive: it is what repetition costs at most")

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        return [Score(value=self._value(words(part_of(text, self.part, self.tags)))) for text in texts]

    def _value(self, found: list[str]) -> float:
        grams = list(zip(*(found[i:] for i in range(self.n)), strict=False))
        return -self.max * (1 - len(set(grams)) / len(grams)) if grams else 0.0
