"""The reasoning and the answer of a reply, told apart by the tags around the reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.errors import ConfigError

__all__ = ["THINK", "Part", "Tags", "check_tags", "part_of"]

Part = Literal["all", "reasoning", "answer"]
Tags = tuple[str, str]
THINK: Tags = ("<think>", "</think>")


def check_tags(tags: Sequence[str], where: str) -> None:
    """Raise `ConfigError` for tags that cannot be told apart in a text."""
    for i, tag in enumerate(tags):
        if not tag.strip():
            raise ConfigError(f"{where}: a tag is empty; write tags=[<think>,</think>]")
        for j, other in enumerate(tags):
            if i != j and tag in other:
                raise ConfigError(f"{where}: the tag '{tag}' stands inside the tag '{other}': the two cannot be told apart")


def part_of(text: str, part: Part, tags: Tags) -> str:
    """Return the reasoning (up to the last closing tag, tags left out), the answer (what follows it), or the whole text.

    A text without a closing tag is all reasoning: it stopped thinking too late, or never had tags.
    """
    if part == "all":
        return text
    opening, closing = tags
    reasoning, closed, answer = text.rpartition(closing)
    if part == "answer":
        return answer if closed else ""
    return (reasoning if closed else text).replace(opening, "").replace(closing, "")
