"""Scores the form of a reply: reasoning between tags, then the answer. A rule on the text, as in DeepSeek-R1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.types import Example, Score
from ._thought import THINK, Tags, check_tags

__all__ = ["Format"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """1 if the whole reply is one block of reasoning between its tags and then the answer, else 0 (or a share).

    s = 1[y = <think> z </think> a], z and a not empty and without tags; with `answer_tags` a stands between these. White
    space around each part is free. DeepSeek-AI 2025 (arXiv 2501.12948v1), section 2.2.2.

    Args:
        tags: around the reasoning.
        answer_tags: around the answer, as R1-Zero has them; none: the answer is what follows the reasoning.
        opened: the prompt has opened the reasoning (`Prompt.opening`), so that a text begins inside it and must not open it.
        partial: of a reply that is not so in whole, the share (tags that are right) / (tags + 1). A tag is right that stands
            in the text once, behind all that have to come before it.
    """

    oracle: ClassVar[bool] = False

    tags: Tags = THINK
    answer_tags: Tags | None = None
    opened: bool = False
    partial: bool = False

    def __post_init__(self) -> None:
        check_tags((*self.tags, *(self.answer_tags or ())), "verifier 'format'")

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        return [Score(value=self._value(text)) for text in texts]

    def _value(self, text: str) -> float:
        if self._whole(text):
            return 1.0
        if not self.partial:
            return 0.0
        wanted = (*self.tags[self.opened :], *(self.answer_tags or ()))
        right = sum(
            text.count(tag) == 1 and all(text.rfind(earlier) < text.index(tag) for earlier in wanted[:i])
            for i, tag in enumerate(wanted)
        )
        return right / (len(wanted) + 1)

    def _whole(self, text: str) -> bool:
        """Return whether the tags stand once each and in order, with something in every part and nothing between them."""
        begun = self.tags[0] + text if self.opened else text
        every = (*self.tags, *(self.answer_tags or ()))
        if any(begun.count(tag) != 1 for tag in every):
            return False
        parts, rest = [], begun
        for tag in every:
            part, found, rest = rest.partition(tag)
            if not found:
                return False
            parts.append(part.strip())
        parts.append(rest.strip())
        before, reasoning, *others = parts
        if self.answer_tags is None:
            return not before and all((reasoning, *others))
        between, answer, after = others
        return bool(not before and reasoning and not between and answer and not after)
