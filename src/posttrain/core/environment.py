"""What answers a model inside an episode: a tool, a checker, another speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .types import Example, Message

__all__ = ["Environment", "Observation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an environment says to the model's last turn; no messages: the episode is over. `reward` is for that turn."""

    messages: tuple[Message, ...] = ()
    reward: float = 0.0


class Environment(Protocol):
    """Answers an episode's turns.

    It is a function of the example and of all that was said, with no memory beside them: a killed run that draws an episode
    again gets the same one, and many episodes may be open at once.
    """

    async def __call__(self, example: Example, turns: Sequence[Message]) -> Observation:
        """Answer the last of `turns`: the model's and the environment's own, in order, the model's the last."""
        ...
