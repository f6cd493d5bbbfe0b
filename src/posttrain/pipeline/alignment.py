"""From a recipe's `win_rate` and `objectives` to stages that judge the replies of evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.config import Strict
from ..core.errors import did_you_mean
from .naming import STAGE, stages_named

if TYPE_CHECKING:
    from .recipe import StageConfig

__all__ = ["REFERENCES", "JudgeStage", "Objective", "Objectives", "WinRates", "check_judging"]

REFERENCES = "references"  # in place of an evaluation: the task's own worked solutions or answers
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class JudgeStage(Strict):
    """Have an evaluation's replies judged: compared with others to the same questions, or scored by themselves.

    `by` is a judge of two (`pairwise:model=…`, asked in both orders), or a verifier, whose higher score wins.
    """

    of: str
    against: str | None = None  # another evaluation, or `references`; none: the replies are scored
    by: str
    objective: Name | None = None  # what the scores are of, as the report calls it
    draw: int | None = Field(default=None, ge=1)  # so many of the questions, by the seed

    @property
    def inputs(self) -> tuple[str, ...]:
        """The earlier stages it reads: the evaluations, and the training stages that the judge is of."""
        other = (self.against,) if self.against not in (None, REFERENCES) else ()
        return tuple(name for name in (self.of, *other, *stages_named(self.by)) if name is not None)

    @model_validator(mode="after")
    def _one_use(self) -> JudgeStage:
        if (self.against is None) == (self.objective is None):
            raise ValueError("give either 'against', to compare, or 'objective', the name of what is scored")
        if self.of == self.against:
            raise ValueError(f"'{self.of}' is compared with itself")
        return self


class WinRates(Strict):
    """Compare each of several evaluations with another, or with the task's reference replies, by one judge or several."""

    of: list[str] = Field(min_length=1)
    against: str = REFERENCES
    by: str | list[str]
    draw: int | None = Field(default=None, ge=1)

    def stages(self) -> Iterator[dict[str, Any]]:
        """Yield the stages, as a recipe would write them."""
        judges = [self.by] if isinstance(self.by, str) else self.by
        for number, by in enumerate(judges, 1):
            behind = f"-{number}" if len(judges) > 1 else ""
            for of in self.of:
                judge = {"of": of, "against": self.against, "by": by, "draw": self.draw}
                yield {"name": f"win-{of}-against-{self.against}{behind}", "judge": judge}


class Objective(Strict):
    """What scores an objective, how much it weighs, and on which evaluations, if not on the common ones."""

    by: str
    weight: float = 1.0
    of: list[str] | None = None  # in the order of the common ones: the same models' replies to other questions


class Objectives(Strict):
    """Score the replies of several evaluations by several objectives (helpful, harmless, …).

    `scale: standard` divides each objective by the standard deviation of all its scores before it is weighed.
    """

    of: list[str] = Field(min_length=1)
    scores: dict[Name, Objective] = Field(min_length=1)
    scale: Literal["raw", "standard"] = "raw"
    draw: int | None = Field(default=None, ge=1)

    @property
    def models(self) -> dict[tuple[str, str], str]:
        """By objective and the evaluation that it scores, the common evaluation of the same model."""
        return {
            (name, own): common
            for name, objective in self.scores.items()
            for own, common in zip(objective.of or self.of, self.of, strict=True)
        }

    @model_validator(mode="after")
    def _as_many(self) -> Objectives:
        for name, objective in self.scores.items():
            if objective.of is not None and len(objective.of) != len(self.of):
                raise ValueError(
                    f"objective '{name}': its 'of' names {len(objective.of)} evaluations and the common one {len(self.of)}: "
                    "the same models in the same order are needed"
                )
        return self

    def stages(self) -> Iterator[dict[str, Any]]:
        """Yield the stages, as a recipe would write them."""
        for name, objective in self.scores.items():
            for of in objective.of or self.of:
                judge = {"of": of, "by": objective.by, "objective": name, "draw": self.draw}
                yield {"name": f"objective-{name}-{of}", "judge": judge}


def check_judging(stage: str, config: JudgeStage, earlier: Mapping[str, StageConfig]) -> None:
    """Raise `ValueError` if what is judged is no evaluation, or two of different tasks, or the judge no trained model."""
    if REFERENCES in earlier:
        raise ValueError(f"no stage can be called '{REFERENCES}': it stands for a task's own replies")
    sides = [config.of, *([config.against] if config.against not in (None, REFERENCES) else [])]
    asked = []
    for name in sides:
        found = earlier[str(name)]
        if found.eval is None:
            near = did_you_mean(str(name), [name for name, stage in earlier.items() if stage.eval is not None])
            raise ValueError(f"stage '{stage}': '{name}' is not an evaluation{near}")
        asked.append((found.eval.task, found.eval.split, found.eval.part))
    if len(set(asked)) > 1:
        raise ValueError(f"stage '{stage}': '{sides[0]}' and '{sides[1]}' do not answer the same questions")
    for name in stages_named(config.by):
        if earlier[name].train is None:
            raise ValueError(f"stage '{stage}': {STAGE}{name} in 'by' is not a training stage")
