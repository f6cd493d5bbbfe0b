"""A calculator that the model may call, and goes on from what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..core.environment import Observation
from ..core.types import Example, Message
from ..tasks.arithmetic import evaluate
from ._speaking import Speaking

__all__ = ["Calculator"]

_CALL = re.compile(r"<calculate>(.*?)</calculate>", re.DOTALL)
_DIGITS = 200  # of a value; a longer one would fill the context


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculator(Speaking):
    """Answer each `<calculate>34 * 5</calculate>` of a turn with a line `34 * 5 = 170`; a turn without one is the last.

    Values are exact: a fraction that no decimal is equal to is rounded to `decimals`. What cannot be worked out (anything
    but numbers, + - * / mod and brackets, or a division by zero) is answered so, and the episode goes on. It says nothing of
    whether a call was useful: rewards do.
    """

    decimals: int = 6

    async def __call__(self, example: Example, turns: Sequence[Message]) -> Observation:
        """Answer the last turn's calls."""
        calls = _CALL.findall(turns[-1].content)
        if not calls:
            return Observation()
        return self.says("\n".join(f"{' '.join(call.split())} = {self._value(call)}" for call in calls))

    def _value(self, call: str) -> str:
        value = evaluate(call)
        if value is None:
            return "error: only numbers, + - * / mod and brackets can be calculated, and nothing divided by zero"
        shown = written(value, self.decimals)
        return shown if len(shown) <= _DIGITS else f"error: more than {_DIGITS} digits"


def written(value: Fraction, decimals: int) -> str:
    """Return a number in decimals, exact where it has no more than `decimals` of them, else rounded half to even."""
    scaled = round(value * 10**decimals)
    sign, digits = "-" if scaled < 0 else "", str(abs(scaled)).zfill(decimals + 1)
    whole, behind = (digits[:-decimals], digits[-decimals:].rstrip("0")) if decimals else (digits, "")
    return f"{sign}{whole}{'.' + behind if behind else ''}"
