"""Written principles that a labeller judges by: built-in ones by name, lines of a file, or one's own text."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError, DataError, did_you_mean

__all__ = ["PRINCIPLES", "check_template", "files_of", "read_principles"]

PRINCIPLES = {
    "helpful": "A response should do what was asked, completely and to the point.",
    "harmless": (
        "A response should help nobody to do harm, and should not insult, deceive or frighten; it may decline, kindly and "
        "with a reason."
    ),
    "honest": "A response should say what is true, make nothing up, and say what it does not know.",
    "correct": (
        "A response should come to the right result by right steps; a wrong result outweighs a good style or a great length."
    ),
    "concise": "A response should be as short as it can be without losing anything that was asked for.",
}


def read_principles(given: str | tuple[str, ...], where: str) -> list[str]:
    """Return principles as sentences: of names, of files with one principle a line, or of texts (which have a space).

    Raises `ConfigError` for a word that is none of these, and `DataError` for a file without a line.
    """
    found: list[str] = []
    for one in [given] if isinstance(given, str) else given:
        if one in PRINCIPLES:
            found.append(PRINCIPLES[one])
        elif _is_file(one):
            lines = [line.strip() for line in Path(one).read_text(encoding="utf-8").splitlines() if line.strip()]
            if not lines:
                raise DataError(f"{where}: the file of principles {one} is empty: write one principle a line")
            found += lines
        elif " " in one.strip():
            found.append(one.strip())
        else:
            raise ConfigError(
                f"{where}: principle '{one}' is no built-in one ({', '.join(PRINCIPLES)}), no file, and no sentence"
                f"{did_you_mean(one, PRINCIPLES)}"
            )
    if not found:
        raise ConfigError(f"{where}: no principles: name at least one")
    return found


def files_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return which of the principles are files: their content decides what is judged."""
    return tuple(one for one in ([given] if isinstance(given, str) else given) if one not in PRINCIPLES and _is_file(one))


def check_template(template: str, where: str) -> None:
    """Raise `ConfigError` for a prompt of one's own that does not show the question, both responses and the principles."""
    for place in ("{question}", "{first}", "{second}", "{criteria}"):
        if template and place not in template:
            raise ConfigError(f"{where}: template must have the place {place}")


def _is_file(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and Path(text).is_file()
