"""Several reward models as one: their mean, their lowest, or their mean less what they disagree by."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Task, Verifier
from ..core.types import Example, Score

__all__ = ["RewardEnsemble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEnsemble:
    """Rewards r_1 … r_M of M models for each text, put together.

    `mean`: μ = (1/M) Σ r_m; `min`: min_m r_m; `mean-std`: μ − penalty · √((1/M) Σ (r_m − μ)²). The latter two trust a text
    less on which the models disagree, where one of them may be fooled. Rewards must share their level: train the models
    with centre above 0, or use output=probability.

    `tally` has the texts and the sum of their standard deviations (`disagreement`).

    Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv 2310.02743), section 3, with
    the standard deviation in place of the variance.

    Args:
        models: the models' folders or hub ids, two or more.
        combine: `mean`, `min` or `mean-std`.
        penalty: how many standard deviations are taken off, with mean-std.
        output: as of `reward_model`.
        label: likewise.
        chat_template: likewise.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto, float32, bfloat16, float16.
        batch_tokens: tokens in a batch at most, padding included.
    """

    oracle: ClassVar[bool] = False
    role: ClassVar[str] = "verifier"

    task: Task
    models: tuple[str, ...]
    combine: Literal["mean", "min", "mean-std"] = "mean"
    penalty: Annotated[float, Field(ge=0)] = 1.0
    output: Literal["auto", "logit", "probability"] = "auto"
    label: int | str | None = None
    chat_template: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    parts: tuple[Verifier, ...] = ()
    tally: dict[str, float] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ConfigError("verifier 'reward_ensemble': models names fewer than two: give models=[one,other]")
        if self.penalty != 1.0 and self.combine != "mean-std":
            raise ConfigError(f"verifier 'reward_ensemble': penalty is read with combine=mean-std only, not {self.combine}")

    @property
    def members(self) -> list[dict[str, Any]]:
        """The verifiers that `parts` must hold, as specs."""
        shared = ("output", "label", "chat_template", "device", "dtype", "batch_tokens")
        settings = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return [{"name": "reward_model", "model": model, **settings} for model in self.models]

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        found = await asyncio.gather(*(part(example, texts) for part in self.parts))
        rewards = [[score.value for score in scores] for scores in zip(*found, strict=True)]
        known = [pstdev(values) for values in rewards if all(map(math.isfinite, values))]
        self.tally["texts"] = self.tally.get("texts", 0) + len(known)
        self.tally["disagreement"] = round(self.tally.get("disagreement", 0.0) + sum(known), 4)
        return [Score(value=self._put_together(values)) for values in rewards]

    def _put_together(self, values: Sequence[float]) -> float:
        if not all(map(math.isfinite, values)):
            return math.nan
        if self.combine == "min":
            return min(values)
        return fmean(values) - (self.penalty * pstdev(values) if self.combine == "mean-std" else 0.0)
