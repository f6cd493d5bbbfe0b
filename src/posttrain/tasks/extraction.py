r"""Reading the final answer from what a model wrote. Every extractor returns None when there is nothing to read.

Order, first what applies:

1. Thinking is not an answer: text up to the last `</think>` is dropped; a `<think>` that is never closed leaves nothing.
2. An explicit marker: `<answer>…</answer>`, `\boxed{…}`, "Answer: …", "#### …", "the (final) answer is …". Of several,
   the last one with something to read. When a marker stands there with nothing readable behind it (the text was cut),
   there is no answer: numbers elsewhere are in the middle of a thought.
3. Without a marker: the last number for `number`, a lone letter for `choice`, a reply of one line for `line`,
   the label that the reply begins with for `label`, the whole text for `text`.

Behind a marker a number is read after the last "=" if there is one ("Answer: 34 + 5 = 39"), else it is the first one
("The answer is 12 apples in 3 boxes").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from ..core.errors import ConfigError
from .numerals import find_numbers, plain

__all__ = ["Extractor", "Kind", "extractor", "marked", "strip_thinking"]

Extractor = Callable[[str], str | None]
Kind = Literal["number", "choice", "boxed", "regex", "last_line", "line", "block", "text", "label"]

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_COLON = re.compile(r"(?:\banswer\b|\bANSWER\b)(?:\s+is)?\s*\**\s*[:：]\s*\**[ \t]*", re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]*", re.MULTILINE)
_PHRASE = re.compile(r"\banswer(?:[ \t]+to[^.\n:]{1,80}|[ \t]*\([^()\n]{1,40}\))?[ \t]+(?:is|=)[ \t]+(?!:)", re.IGNORECASE)
_PHRASE_CUT = re.compile(r"\banswer(?:[ \t]*\([^()\n]{1,40}\))?[ \t]+is[ \t:]*\Z", re.IGNORECASE)
_BRACES = re.compile(r"\\f?boxed\s*\{|[{}]")
_LINE = re.compile(r"\S[^\n]*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n|\Z")


def strip_thinking(text: str) -> str | None:
    """Return what follows the last `</think>`; None when a `<think>` is never closed."""
    head, closed, tail = text.rpartition("</think>")
    rest = tail if closed else head + tail
    return None if "<think>" in rest else rest


def _boxes(text: str) -> list[tuple[int, str]]:
    """Return (position, content) of every \\boxed{…}, braces balanced, in order; content "" where it is not closed."""
    found: list[tuple[int, str]] = []
    open_braces: list[int | None] = []  # for each open brace the index of its box in `found`; None: an ordinary brace
    starts: dict[int, int] = {}
    for match in _BRACES.finditer(text):
        if match[0] == "}":
            box = open_braces.pop() if open_braces else None
            if box is not None:
                found[box] = (found[box][0], text[starts[box] : match.start()].strip())
        elif match[0] == "{":
            open_braces.append(None)
        else:
            starts[len(found)] = match.end()
            open_braces.append(len(found))
            found.append((match.start(), ""))
    return found


def marked(text: str, *, block: bool = False) -> list[str]:
    """Return what stands behind each explicit marker, in order; "" for a marker with nothing behind it.

    A marker's content ends with its line (of a phrase: with its sentence), or with `block` at the next marker or the end.
    """
    spots: list[tuple[int, int, str | None]] = [(m.start(), m.end(), m[1]) for m in _TAG.finditer(text)]
    spots += [(at, at, content) for at, content in _boxes(text)]
    for pattern in (_COLON, _HASHES):
        spots += [(m.start(), m.end(), None) for m in pattern.finditer(text)]
    for m in _PHRASE.finditer(text):
        stop = _SENTENCE_END.search(text, m.end())
        spots.append((m.start(), m.end(), text[m.end() : stop.start() if stop else None]))
    spots += [(m.start(), m.end(), "") for m in _PHRASE_CUT.finditer(text)]
    spots.sort(key=lambda spot: spot[0])
    contents: list[str] = []
    for i, (_, end, inside) in enumerate(spots):
        content = inside or ""
        if inside is None:
            if block:
                content = text[end : spots[i + 1][0]] if i + 1 < len(spots) else text[end:]
            elif line := _LINE.search(text, end):
                content = line[0]  # "Answer:" may stand on a line of its own, with the answer on the next one
        contents.append(content.strip())
    return contents


def _read_number(content: str) -> str | None:
    found = find_numbers(content.rpartition("=")[2]) or find_numbers(content)
    return found[0] if found else None


def _number(text: str) -> str | None:
    contents = marked(text)
    readable = [found for content in contents if (found := _read_number(content)) is not None]
    if readable:
        return readable[-1]
    # "the answer is not obvious yet" is no marker for a number; "Answer:" with nothing behind it is.
    if any(not content for content in contents):
        return None
    numbers = find_numbers(text)
    return numbers[-1] if numbers else None


def _undress(content: str) -> str:
    content = content.strip()
    boxes = _boxes(content)
    if boxes and content.lstrip("$ (\\").startswith(("boxed", "fboxed")):
        content = boxes[-1][1]
    content = re.sub(r"^```\w*\n?|\n?```$", "", content.strip()).strip()
    content = re.sub(r"</?answer>", "", content, flags=re.IGNORECASE).strip()
    for mark in ("**", "`", "$$", "$"):
        if len(content) > 2 * len(mark) and content.startswith(mark) and content.endswith(mark):
            content = content[len(mark) : -len(mark)].strip()
    return content.removesuffix("**").strip()


def _line(text: str) -> str | None:
    contents = marked(text)
    if contents:
        readable = [undressed for content in contents if (undressed := _undress(content))]
        return readable[-1] if readable else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _undress(lines[0]) or None if len(lines) == 1 else None


def _block(text: str) -> str | None:
    contents = marked(text, block=True)
    if contents:
        readable = [undressed for content in contents if (undressed := _undress(content))]
        return readable[-1] if readable else None
    return _undress(text) or None


def _boxed(text: str) -> str | None:
    closed = [content for _, content in _boxes(text) if content]
    return closed[-1] if closed else None


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _undress(re.sub(_COLON, "", lines[-1])) or None if lines else None


def _choice(letters: str) -> Extractor:
    one = f"[{letters}{letters.lower()}]"
    bracketed = re.compile(rf"\(({one})\)|\b(?:option|choice)\s+\(?({one})\b", re.IGNORECASE)
    leading = re.compile(rf"\(?({one})\)?(?:[\s).:,]|$)")
    lone = re.compile(rf"(?<![\w'])([{letters}])(?![\w'])")

    def first(content: str) -> str | None:
        content = plain(_undress(content))
        for pattern in (leading, bracketed, lone):
            match = pattern.match(content) if pattern is leading else pattern.search(content)
            if match:
                return next(group for group in match.groups() if group).upper()
        return None

    def extract(text: str) -> str | None:
        contents = marked(text)
        readable = [letter for content in contents if (letter := first(content))]
        if readable:
            return readable[-1]
        if any(not content for content in contents):
            return None
        found = [next(group for group in match.groups() if group) for match in bracketed.finditer(text)]
        if found:
            return found[-1].upper()
        opening = re.match(rf"\s*\(?([{letters}])(?:\)|\.|:|\s*$)", plain(text))
        return opening[1] if opening else None

    return extract


def _regex(pattern: str) -> Extractor:
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"extract: the pattern {pattern!r} is not a regular expression: {error}") from None

    def extract(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        if not matches:
            return None
        found = matches[-1][1] if compiled.groups else matches[-1][0]
        return found.strip() or None if found else None

    return extract


def _label(labels: Sequence[str], *, other: bool) -> Extractor:
    """Read the label that an answer begins with, "(A)" also without brackets; with `other` any other line is an answer."""
    spelled = [
        rf"\(?{label[1]}(?:[).:,]|\s*$)" if re.fullmatch(r"\([A-Z]\)", label) else rf"{re.escape(label)}(?!\w)"
        for label in labels
    ]
    begins = re.compile(r"[\s\"'*`]*(?:" + "|".join(f"({pattern})" for pattern in spelled) + ")", re.IGNORECASE)

    def first(content: str) -> str | None:
        match = begins.match(_undress(content))
        return None if match is None or match.lastindex is None else labels[match.lastindex - 1]

    def extract(text: str) -> str | None:
        contents = marked(text)
        if not contents:
            return first(text) or (_line(text) if other else None)
        readable = [found for content in contents if (found := first(content) or (_undress(content) if other else None))]
        return readable[-1] if readable else None

    return extract


def extractor(kind: Kind, *, pattern: str = "", letters: str = "ABCDE", labels: Sequence[str] = ()) -> Extractor:
    """Return the named extractor; thinking is stripped first.

    Args:
        kind: `number`, `choice`, `boxed`, `regex`, `last_line`, `line` (a marked or the only line), `block` (may span
            lines), `label` (one of `labels`), `text` (all of it).
        pattern: the regular expression of `regex`: its first group (or the whole match) of the last match.
        letters: the letters that `choice` accepts.
        labels: the answers of `label`; with `line` those that are read alone from a line that begins with one.
    """
    readers: dict[str, Extractor] = {
        "number": _number,
        "boxed": _boxed,
        "last_line": _last_line,
        "line": _line,
        "block": _block,
        "text": lambda text: text.strip() or None,
    }
    if kind == "label" or (labels and kind == "line"):
        read = _label(labels, other=kind == "line")
    else:
        read = _regex(pattern) if kind == "regex" else _choice(letters) if kind == "choice" else readers[kind]

    def extract(text: str) -> str | None:
        visible = strip_thinking(text)
        return None if visible is None else read(visible)

    return extract
