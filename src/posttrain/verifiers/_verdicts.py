"""Reading what a judge wrote: the last line that gives a verdict, strictly."""

from __future__ import annotations

import re

__all__ = ["last_line"]


def last_line(text: str, word: str) -> str | None:
    """Return what follows the last `Word:` that begins a line, without the marks around it; None where there is none.

    `**Verdict: [[1]]**` gives "1". Reading it is the caller's: a last line that cannot be read makes the reply unparsed,
    even if an earlier one could.
    """
    found = re.findall(rf"(?im)^[^\w\n]*{word}[*_ ]*:(.*)$", text)
    return str(found[-1]).strip(" \t\r*_[]().\"'").lower() if found else None
