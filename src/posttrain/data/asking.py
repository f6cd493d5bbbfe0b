"""How training rows ask their questions."""

from __future__ import annotations

from ..core.protocols import Prompter
from ..core.specs import build

__all__ = ["asking"]


def asking(own: str, sampled_with: Prompter) -> Prompter:
    """Return the prompter that training rows ask with: one of their own, or the one the replies were sampled with."""
    if not own:
        return sampled_with
    prompter: Prompter = build(own, "posttrain.prompting", "prompt")
    return prompter
