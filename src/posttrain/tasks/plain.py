"""A task without examples or grading: for prompts that come from rows, and are put to a model as they are."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.types import Example

__all__ = ["Plain"]


class Plain:
    """Adds nothing to a prompt; the whole text is the answer, and nothing is right or wrong."""

    name = "plain"
    version = "1"
    instruction = ""
    max_tokens = 512

    def examples(self, split: str) -> Sequence[Example]:
        """Return nothing."""
        return ()

    def extract(self, text: str) -> str | None:
        """Return the text."""
        return text

    def key(self, answer: str) -> str:
        """Return the text itself."""
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        """Refuse: there is nothing to grade against."""
        raise ConfigError("prompts from rows have no right answer to grade against")
