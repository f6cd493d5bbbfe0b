"""Numbers as people and models write them: finding them in a text, and one canonical form for equal ones."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["NUMBER", "find_numbers", "number", "number_key", "plain"]

_LONGEST = 400  # characters: beyond this a "number" is a model repeating a digit
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?"
# A minus is a sign only where no number, word or closing bracket stands before it: "5-3" holds 5 and 3, "= -3" holds -3.
NUMBER = re.compile(rf"(?:(?<![\w.)\]}}])[-+]\s?)?\$?(?<![\d.]){_UNSIGNED}(?:\s?/\s?\d+(?![\d.]))?")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))")
_MIXED = re.compile(r"(-?)(\d+)\s+(\d+)\s?/\s?(\d+)")
_UNITS = re.compile(r"^(.*?\d)\s*(?:%|percent|°[CF]?|[A-Za-z]+(?:[ /][A-Za-z]+){0,3})$", re.DOTALL)


def plain(text: str) -> str:
    """Return the text with LaTeX dressing, typographic minus signs and Markdown marks removed."""
    text = text.replace("\u2212", "-").replace("\u2013", "-").replace("\u00a0", " ").replace("\u202f", " ")
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r" \1", text)
    text = _LATEX_FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", text)
    text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[!,;: ]", "", text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\(", "").replace("\\)", "")
    return text.replace("\\[", "").replace("\\]", "").replace("**", "").strip()


def find_numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, as written (currency sign and spaces inside removed)."""
    found = []
    for match in NUMBER.finditer(plain(text)):
        found.append(re.sub(r"[\s$]", "", match[0]))
    return found


def number(text: str) -> Fraction | None:
    """Return the value of a text that is one number (with currency, separators, units or a percent sign), else None.

    A percent sign is a unit: "50%" is 50, as benchmark answers write it.
    """
    text = plain(text).strip("$€£ ").rstrip(". ")
    if len(text) > _LONGEST:
        return None
    text = re.sub(r"^([-+]?)\s*[$€£]\s*", r"\1", text)
    mixed = _MIXED.fullmatch(text)
    if mixed and int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return -value if mixed[1] else value
    if NUMBER.fullmatch(text) is None:
        units = _UNITS.match(text)
        if units is None or NUMBER.fullmatch(units[1]) is None:
            return None
        text = units[1]
    top, _, bottom = re.sub(r"[\s,$]", "", text).partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / int(bottom or 1)


def number_key(text: str) -> str | None:
    """Return one string for all spellings of a number ("1,000", "$1000.00", "1000 eggs": "1000"); None if it is none."""
    value = number(text)
    return None if value is None else str(value)
