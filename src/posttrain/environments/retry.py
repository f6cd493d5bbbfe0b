"""Another try for an answer that a verifier refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.environment import Observation
from ..core.types import Example, Message
from ._speaking import Speaking

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Speaking):
    """Say "That is not right" to a turn whose score is below `threshold`, and let the model try again; a better one ends it.

    Each refused turn is rewarded with −`fine`, so that a first right try is worth more than a second. With a verifier that
    looks at the gold answer the model is told whether it was right, which no user could: that is for training, and an
    evaluation with it is marked as an oracle's.
    """

    verifier: str = "exact"
    threshold: float = 1.0
    fine: float = 0.0
    say: str = "That is not right. Look for the mistake and try again."
    parts: Mapping[str, Any] = field(default_factory=dict)  # verifiers by their specs, given where it is built

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `parts` must hold."""
        return (self.verifier,)

    async def __call__(self, example: Example, turns: Sequence[Message]) -> Observation:
        """Answer the last turn."""
        (score,) = await self.parts[self.verifier](example, [turns[-1].content])
        return Observation() if score.value >= self.threshold else self.says(self.say, reward=-self.fine)
