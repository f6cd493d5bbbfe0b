"""What the assistant's turn opens with, as text."""

from __future__ import annotations

from ..core.types import Completion, Prompt

__all__ = ["begun"]


def begun(prompt: Prompt) -> str:
    """Return the text that the assistant's turn opens with; empty when it is not begun."""
    return prompt.prefix.text if isinstance(prompt.prefix, Completion) else prompt.prefix or ""
