"""From a recipe's `retention` block to its stages: general tasks answered by the start model and by each trained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, model_validator

from ..core.config import Strict

__all__ = ["Retention"]


class Retention(Strict):
    """General tasks to answer before and after training, so that what was forgotten is a number.

    `tasks` are names of the recipe's `tasks`; `models` training stages (default: all). `samples` replies to each of
    `sampled` questions of `diverse` (default: the first task) are drawn too, to see how varied they are; 0: none.
    """

    tasks: list[str] = Field(min_length=1)
    models: list[str] = Field(default_factory=list)
    split: str = "test"
    draw: int | None = Field(default=100, ge=1)  # examples of each task, by the seed; null: all
    prompt: str = "zero_shot"
    max_tokens: int | None = Field(default=None, ge=1)
    diverse: str | None = None
    sampled: int = Field(default=32, ge=1)
    samples: int = Field(default=4, ge=0)
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _several(self) -> Retention:
        if self.samples == 1:
            raise ValueError("'samples' must be 0, or at least 2 replies to a question")
        return self

    def stages(self, trained: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the evaluations, model by model, as a recipe would write them."""
        for model in (None, *(self.models or trained)):
            own = {} if model is None else {"model": model}
            name = model or "start"
            asked = {"split": self.split, "prompt": self.prompt, "max_tokens": self.max_tokens}
            for task in self.tasks:
                config = {"task": task, "draw": self.draw, **asked}
                yield {"name": f"retention-{task}-{name}", "label": name, "lever": "retention", "eval": config, **own}
            if self.samples:
                strategy = f"sample:n={self.samples},temperature={self.temperature:g}"
                config = {"task": self.diverse or self.tasks[0], "draw": self.sampled, "strategy": strategy, **asked}
                yield {"name": f"diversity-{name}", "label": name, "lever": "diversity", "eval": config, **own}
