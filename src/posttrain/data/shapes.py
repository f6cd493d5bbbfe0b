"""The shapes that rows have once they are read: turns, demonstrations, plain text, and judgements of several kinds."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.types import Message

__all__ = [
    "Conversation",
    "Demonstration",
    "Judgement",
    "Normal",
    "Plain",
    "Preference",
    "Ranking",
    "Scored",
    "Steps",
    "Thumb",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, of which the assistant's are demonstrations."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and how to answer it."""

    prompt: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A prompt with a better and a worse answer; `margin` is by how much it is better, where that is known.

    `preference` is a soft label: how probable it is that `chosen` is the better one, in [0, 1]; None: it is.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    preference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A prompt with answers in order: rank 1 is the best, equal ranks are a tie."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A prompt with answers and a number for each: the higher, the better."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """A prompt with one answer, and whether it was liked."""

    prompt: tuple[Message, ...]
    completion: str
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Text without turns: every token is trained, as in continued pre-training."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A prompt with a solution in steps, and for each how likely it is right: 1, 0, something between, None: not judged."""

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]


Judgement = Preference | Ranking | Scored | Thumb | Steps
Normal = Conversation | Demonstration | Plain | Judgement
