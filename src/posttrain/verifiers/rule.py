"""Scores by rules that need no gold answer: is there an answer, are the arithmetic steps true, does a pattern match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.types import Example, Score
from ..tasks.arithmetic import evaluate
from ..tasks.numerals import plain

__all__ = ["Rule", "equations"]

_TERM = r"(?:\([ ]*)*-?\$?-?\d[\d,]*(?:\.\d+)?(?:[ ]*\))*"
# Not in the middle of something longer: a product with units, a mixed number ("8 x 1 1/2"), algebra ("= 5A").
_EQUATION = re.compile(
    r"(?<![\w.,*/+×÷-])(?<![\d*/+×÷-][ ])(?<![ ]x[ ])"
    rf"({_TERM}(?:[ ]*[-+*/×÷x][ ]*{_TERM})+)[ ]*=[ ]*(?=(-?\$?-?\d[\d,]*(?:\.\d+)?)(?![\d%A-Za-z]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Check form and arithmetic without knowing the answer: the mean of the rules that are on, each in [0, 1].

    Args:
        parses: an answer can be read: 0 or 1.
        steps: the share of the written equations (`34 + 5 = 39`) that are true; 1 where none is written.
        regex: the text contains this pattern: 0 or 1.
    """

    oracle: ClassVar[bool] = False

    task: Task
    parses: bool = True
    steps: bool = True
    regex: str | None = None

    def __post_init__(self) -> None:
        if not (self.parses or self.steps or self.regex):
            raise ConfigError("verifier 'rule': every rule is off; turn on parses or steps, or give a regex")
        try:
            re.compile(self.regex or "")
        except re.error as error:
            raise ConfigError(f"verifier 'rule': regex {self.regex!r} is not a regular expression: {error}") from None

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text; `Score.steps` holds 1 or 0 for each equation in order."""
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> Score:
        checked = tuple(float(true) for true in equations(text))
        parts = []
        if self.parses:
            parts.append(float(self.task.extract(text) is not None))
        if self.steps:
            parts.append(sum(checked) / len(checked) if checked else 1.0)
        if self.regex:
            parts.append(float(re.search(self.regex, text, re.MULTILINE) is not None))
        return Score(value=sum(parts) / len(parts), steps=checked if self.steps else None)


def equations(text: str) -> list[bool]:
    """Return for each written equation, in order, whether it is true (to the decimals that its result is given with)."""
    found = []
    for match in _EQUATION.finditer(plain(text)):
        right = match[2].replace("$", "").replace(",", "")
        value = evaluate(match[1])
        if value is not None:
            half = Fraction(1, 2 * 10 ** len(right.partition(".")[2]))
            exact = value.denominator == 1 or "." not in right
            found.append(value == Fraction(right) if exact else abs(value - Fraction(right)) <= half)
    return found
