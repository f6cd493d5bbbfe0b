"""Scores in which language a reply reasons: the share of its words in the target language, as in DeepSeek-R1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..core.errors import ConfigError, did_you_mean
from ..core.types import Example, Score
from ..data.language import LANGUAGES, language_of, share_in
from ._thought import THINK, Part, Tags, check_tags, part_of

__all__ = ["Language"]

_TARGETS = {*LANGUAGES, *LANGUAGES.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The share of the words of the reasoning that are in the target language, in [0, 1].

    s = |words of z in the target| / |words of z|. DeepSeek-AI 2025 (arXiv 2501.12948v1), section 2.3.2.

    Numbers, formulas and code do not count; reasoning without words scores 0. Where the question has no letters, so that its
    language cannot be told, every text scores 1 and `tally["no_target"]` counts it. Scripts are told with certainty,
    the languages of the Latin script guessed by function words, sentence by sentence (see `data.language.share_in`).

    Args:
        target: a code (`en`, `zh`, …) or a script (`latin`, `han`, …); default: the language of the question.
        part: what is looked at: the `reasoning` (all of a text without a closing tag), the `answer` behind it, or `all`.
        tags: around the reasoning.
    """

    oracle: ClassVar[bool] = False

    target: str | None = None
    part: Part = "reasoning"
    tags: Tags = THINK
    tally: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        check_tags(self.tags, "verifier 'language'")
        if self.target is not None and self.target not in _TARGETS:
            raise ConfigError(
                f"verifier 'language': cannot tell the target '{self.target}'{did_you_mean(self.target, sorted(_TARGETS))}"
            )

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        asked = "\n".join((example.question, *(turn.content for turn in example.messages if turn.role == "user")))
        target = self.target or language_of(asked)
        self.tally["texts"] += len(texts)
        if target is None:
            self.tally["no_target"] += len(texts)
            return [Score(value=1.0) for _ in texts]
        shares = [share_in(part_of(text, self.part, self.tags), target) for text in texts]
        self.tally["wordless"] += shares.count(None)
        return [Score(value=share or 0.0) for share in shares]
