"""What environments that speak have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.environment import Observation
from ..core.types import Message

__all__ = ["Speaking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaking:
    """Answers with one message in a role that the model's chat template knows; `tool` is known to few."""

    role: Literal["user", "tool"] = "user"

    def says(self, text: str, *, reward: float = 0.0) -> Observation:
        """Return an observation of one message."""
        return Observation(messages=(Message(role=self.role, content=text),), reward=reward)
