"""Scores of samples by a verifier or by the model's own likelihood: one number a sample, None where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.errors import BudgetSpentError, CapabilityError, ConfigError
from ..core.protocols import Tools
from ..core.types import Candidate, Example, Score
from ..stats.steps import Aggregation, aggregate
from ._vote import mean_logprob

__all__ = ["Aggregate", "Scorer", "Transform", "best_index"]

Aggregate = Literal["value"] | Aggregation
Transform = Literal["raw", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores candidates by `spec`: "likelihood" (from the samples themselves), or a verifier in `Tools.verifiers`.

    Args:
        method: whose scores these are, for error messages.
        spec: "likelihood" or a verifier's spec.
        aggregate: the verifier's own value, or one number from its scores of the steps.
        transform: "sigmoid" maps raw rewards (logits) into (0, 1), so that they can be summed.
    """

    method: str
    spec: str
    aggregate: Aggregate = "value"
    transform: Transform = "raw"

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return () if self.spec == "likelihood" else (self.spec,)

    def oracle(self, tools: Tools) -> bool:
        """Return whether the scores look at the gold answer."""
        return bool(self.verifiers) and tools.verifiers[self.spec].oracle

    def check(self, tools: Tools) -> None:
        """Raise, before anything is sampled, when these scores cannot be had."""
        if self.spec == "likelihood" and "logprobs" not in tools.engine.can:
            raise CapabilityError(f"{self.method}: likelihood needs log-probabilities, which this engine does not give")
        if self.spec == "likelihood" and self.aggregate != "value":
            raise ConfigError(
                f"{self.method}: aggregate={self.aggregate} is for verifiers that score steps; likelihood has none"
            )
        if self.verifiers and self.spec not in tools.verifiers:
            raise ConfigError(f"{self.method}: verifier '{self.spec}' was not set up")

    async def __call__(self, example: Example, candidates: Sequence[Candidate], tools: Tools) -> list[float | None]:
        """Return one score a candidate; None for a missing one, one that is not a number, or a spent budget."""
        if self.spec == "likelihood":
            means = [mean_logprob(candidate.completion) for candidate in candidates]
            return [self._finite(None if mean is None else math.exp(mean)) for mean in means]
        try:
            given = await tools.verifiers[self.spec](example, [candidate.text for candidate in candidates])
        except BudgetSpentError:
            return [None] * len(candidates)
        return [self._finite(None if score is None else self._number(score)) for score in given]

    def weights(self, scores: Sequence[float | None]) -> list[float]:
        """Return the scores as weights of votes, 0 where there is none; raises `ConfigError` for a negative one."""
        lowest = min((score for score in scores if score is not None), default=0.0)
        if lowest < 0:
            raise ConfigError(
                f"{self.method} sums scores, and verifier '{self.spec}' gave {lowest:g}: use a verifier with scores from "
                "0 to 1, transform=sigmoid for raw rewards, or no weights"
            )
        return [score or 0.0 for score in scores]

    def _number(self, score: Score) -> float | None:
        """Return the verifier's own value, or its steps' put together as `aggregate` says."""
        if self.aggregate == "value":
            return score.value
        steps = score.steps
        if steps is None:
            raise ConfigError(
                f"{self.method}: aggregate={self.aggregate} needs scores of steps, and verifier '{self.spec}' gives none: "
                "leave aggregate at value"
            )
        if not steps:
            return None  # nothing that could be scored
        if self.aggregate == "product" and min(steps) < 0:
            raise ConfigError(
                f"{self.method}: aggregate=product multiplies probabilities, and verifier '{self.spec}' gave a step "
                f"{min(steps):g}: use last, min or mean"
            )
        return aggregate(steps, self.aggregate)

    def _finite(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return None
        if self.transform == "sigmoid":
            return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
        return value


def best_index(scores: Sequence[float | None], eligible: Sequence[int]) -> int:
    """Return which of the eligible samples scores best: unscored ones last, the first of equals."""
    return max(eligible, key=lambda i: (-math.inf if scores[i] is None else scores[i], -i))
