"""Scores whether a text keeps within bounds of length, in words or characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..core.errors import ConfigError
from ..core.types import Example, Score
from ..data.words import words
from ._thought import THINK, Part, Tags, check_tags, part_of

__all__ = ["Length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """1 within the bounds and 0 far outside, linear between: in [0, 1]; with `penalty` one less, in [-1, 0].

    s = clip(1 - d / soft, 0, 1), d = max(min - L, L - max, 0) the distance to the bounds; with soft = 0 s = 1[d = 0]

    With `penalty` and no `min` it is the shape of DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476,
    equation 13: max = L_max - L_cache, soft = L_cache), there of tokens.

    Args:
        min: the shortest length that is right.
        max: the longest that is right.
        soft: how far outside the score has fallen to its lowest.
        unit: `words` (in scripts without spaces each character is one) or `characters`, without white space at both ends.
        part: what is measured: `all` of a text, its `reasoning` (all without a closing tag), or the `answer` behind it.
        tags: around the reasoning.
        penalty: one less, so that what is right costs nothing.
    """

    oracle: ClassVar[bool] = False

    min: int = 0
    max: int | None = None
    soft: int = 0
    unit: Literal["words", "characters"] = "words"
    part: Part = "all"
    tags: Tags = THINK
    penalty: bool = False

    def __post_init__(self) -> None:
        where = "verifier 'length'"
        check_tags(self.tags, where)
        if self.max is None and self.min == 0:
            raise ConfigError(f"{where}: nothing to keep within; give min, max or both")
        if self.min < 0 or self.soft < 0 or (self.max is not None and self.max < self.min):
            raise ConfigError(
                f"{where}: needs 0 <= min <= max and soft >= 0, not min={self.min}, max={self.max}, soft={self.soft}"
            )

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        return [Score(value=self._value(part_of(text, self.part, self.tags)) - self.penalty) for text in texts]

    def _value(self, text: str) -> float:
        length = len(words(text) if self.unit == "words" else text.strip())
        outside = self.min - length if self.max is None or length < self.min else length - self.max
        if outside <= 0:
            return 1.0
        return 1.0 - outside / self.soft if outside < self.soft else 0.0
