"""Recipes: a YAML file that names a model, a task and the stages to run, one after the other, or in groups that repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.config import Strict, read_yaml, validate
from ..core.errors import ConfigError, did_you_mean
from ..core.types import Example
from .alignment import JudgeStage, Objectives, WinRates
from .data_config import DataStage
from .groups import expanded, override
from .naming import STAGE, stages_named
from .references import check_references
from .retained import Retention
from .variables import filled

__all__ = [
    "STAGE",
    "DataStage",
    "EvalStage",
    "Recipe",
    "SearchStage",
    "StageConfig",
    "StudentStage",
    "TaskUse",
    "TrainStage",
    "load_recipe",
]

Lever = Literal["prompting", "test-time", "fine-tuning", "preference", "combined", "oracle", "retention", "diversity"]


class TaskUse(Strict):
    """A task with its rows, under a name that stages use."""

    task: str
    data: str | None = None
    examples: dict[str, int] = Field(default_factory=dict)  # for generated tasks: how many examples each split has


class EvalStage(Strict):
    """Answer a split of a task with a prompt and a strategy."""

    task: str | None = None  # one of the recipe's `tasks`, or a task by itself; default: the recipe's task
    teacher: str | None = None  # another model than the recipe's, by any reference: its replies are data
    split: str = "test"
    part: str | None = Field(default=None, pattern=r"^[1-9]\d*/[1-9]\d*$")  # 2/3: the second third of the split
    limit: int | None = Field(default=None, ge=1)
    draw: int | None = Field(default=None, ge=1)  # so many examples drawn by the seed, instead of the first ones
    prompt: str = "zero_shot"
    strategy: str = "greedy"
    instruction: str | None = None  # an earlier search stage, whose instruction is put before the prompt
    max_tokens: int | None = Field(default=None, ge=1)  # the task's own limit if not given
    budget_tokens: int | None = Field(default=None, ge=1)  # per example, over all roles
    budget_flops: float | None = Field(default=None, gt=0)
    run_budget_tokens: int | None = Field(default=None, ge=1)  # for the whole evaluation
    run_budget_flops: float | None = Field(default=None, gt=0)

    @property
    def scoring(self) -> tuple[str, ...]:
        """The training stages whose checkpoints the strategy's verifiers score with: `model=stage:NAME`."""
        return stages_named(self.strategy)

    @property
    def allowance(self) -> dict[str, float | None]:
        """The budgets, by the names of `Allowance.of`."""
        return {
            "tokens": self.budget_tokens,
            "flops": self.budget_flops,
            "run_tokens": self.run_budget_tokens,
            "run_flops": self.run_budget_flops,
        }

    @model_validator(mode="after")
    def _one_unit(self) -> EvalStage:
        budgets = self.allowance
        if any(budgets[n] for n in ("tokens", "run_tokens")) and any(budgets[n] for n in ("flops", "run_flops")):
            raise ValueError("give budgets in tokens or in FLOPs, not both")
        if self.limit is not None and self.draw is not None:
            raise ValueError("give either 'limit', the first examples, or 'draw', as many drawn by the seed")
        return self

    @model_validator(mode="after")
    def _part_exists(self) -> EvalStage:
        if self.part is not None and self._part[0] > self._part[1]:
            raise ValueError(f"part {self.part} is beyond the last of {self._part[1]} parts")
        return self

    @property
    def _part(self) -> tuple[int, int]:
        number, _, of = (self.part or "1/1").partition("/")
        return int(number), int(of)

    def part_of(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return the part of a split's examples that is asked."""
        number, of = self._part
        return examples[len(examples) * (number - 1) // of : len(examples) * number // of]


class SearchStage(Strict):
    """Search for an instruction (`PromptSearch` has the settings) and measure it on a split the search never sees."""

    split: str = "test"
    limit: int | None = Field(default=None, ge=1)
    prompt: str = "zero_shot"
    strategy: str = "greedy"
    given: list[str] = Field(default_factory=list)  # instructions to try beside the proposals
    settings: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int | None = Field(default=None, ge=1)


class TrainStage(Strict):
    """Train with a method on an earlier data stage's rows.

    `eval_data` names a data stage whose rows are held out, `teacher` the training stage that a distillation learns from.
    Online methods grade with a `task` (default: the recipe's) and learn from `rewards`, verifiers with weights; `watched`
    ones are told beside them. The method's own settings may name training stages too: `value_start=stage:NAME/value`.
    """

    method: str
    data: str
    eval_data: str | None = None
    teacher: str | None = None
    task: str | None = None  # one of the recipe's `tasks`, or a task by itself
    rewards: list[str] | None = None  # `weight*spec` each
    watched: list[str] | None = None  # specs

    @property
    def scoring(self) -> tuple[str, ...]:
        """The training stages whose checkpoints the rewards score with, or what is watched: `model=stage:NAME`."""
        specs = (*(self.rewards or ()), *(self.watched or ()))
        return tuple(dict.fromkeys(name for spec in specs for name in stages_named(spec)))

    @property
    def reading(self) -> tuple[str, ...]:
        """The training stages whose checkpoints the method's settings name."""
        return stages_named(self.method)


class StudentStage(Strict):
    """Cut a smaller model out of the stage's model: one of the sizes of SmolLM2-135M, or what differs from the teacher."""

    size: str | None = None
    layers: int | None = Field(default=None, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    ff: int | None = Field(default=None, ge=1)

    @property
    def numbers(self) -> dict[str, int | None]:
        """The sizes, by the names of `StudentShape`."""
        return {"layers": self.layers, "hidden": self.hidden, "heads": self.heads, "ff": self.ff}

    @model_validator(mode="after")
    def _one_shape(self) -> StudentStage:
        if (self.size is None) == (not any(self.numbers.values())):
            raise ValueError("give either 'size', or 'layers', 'hidden', 'heads' and 'ff' as far as they differ")
        return self


class StageConfig(Strict):
    """One stage: exactly one of its kinds; `model` names an earlier training or student stage (default: the recipe's)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    label: str | None = None
    lever: Lever | None = None
    model: str | None = None
    note: str = ""
    against: str | None = None
    oracle_of: str | None = None  # report this stage's pass@N as an oracle rung with this label
    eval: EvalStage | None = None
    data: DataStage | None = None
    train: TrainStage | None = None
    search: SearchStage | None = None
    student: StudentStage | None = None
    judge: JudgeStage | None = None

    @property
    def makes_a_model(self) -> bool:
        """Whether later stages can start from what it leaves."""
        return self.train is not None or self.student is not None

    @model_validator(mode="after")
    def _one_kind(self) -> StageConfig:
        parts = (self.eval, self.data, self.train, self.search, self.student, self.judge)
        if sum(part is not None for part in parts) != 1:
            raise ValueError("a stage needs exactly one of 'eval', 'data', 'train', 'search', 'student' and 'judge'")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages this one reads."""
        names = [self.model, self.eval.instruction if self.eval else None]
        names += self.eval.scoring if self.eval else ()
        if self.data is not None:
            names += [self.data.source, self.data.also, *(self.data.stages or ()), self.data.labelled_by, self.data.beside]
        if self.train is not None:
            names += [self.train.data, self.train.eval_data, self.train.teacher, *self.train.scoring, *self.train.reading]
        names += self.judge.inputs if self.judge else ()
        return tuple(name for name in names if name is not None)


class Recipe(Strict):
    """The whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    model: str
    task: str | None = None
    data: str | None = None
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], TaskUse] = Field(
        default_factory=dict
    )  # more tasks, by the names that stages use
    vars: dict[str, str] = Field(default_factory=dict)  # `${name}` in any text of the recipe stands for its value
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    slots: int = Field(default=128, ge=1)
    cache: bool = False  # keep what is generated in the run folder: stages and resumed runs generate nothing twice
    examples: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    stages: list[StageConfig] = Field(min_length=1)
    retention: Retention | None = None
    win_rate: WinRates | list[WinRates] | None = None
    objectives: Objectives | None = None

    @model_validator(mode="after")
    def _retained(self) -> Recipe:
        """Add the evaluations that `retention` asks for behind the others; a resolved recipe has them already."""
        if self.retention is not None:
            for name in (*self.retention.tasks, *([self.retention.diverse] if self.retention.diverse else [])):
                if name not in self.tasks:
                    raise ValueError(f"retention: '{name}' is not one of 'tasks'{did_you_mean(name, self.tasks)}")
            trained = [stage.name for stage in self.stages if stage.train is not None]
            if not trained:
                raise ValueError("'retention' compares trained models with the start: no stage trains")
            there = {stage.name for stage in self.stages}
            made = [StageConfig.model_validate(stage) for stage in self.retention.stages(trained)]
            self.stages.extend(stage for stage in made if stage.name not in there)
        return self

    @model_validator(mode="after")
    def _judged(self) -> Recipe:
        """Likewise what `win_rate` and `objectives` ask for."""
        several = self.win_rate if isinstance(self.win_rate, list) else [self.win_rate]
        asked = [block for block in (*several, self.objectives) if block is not None]
        there = {stage.name for stage in self.stages}
        made: dict[str, StageConfig] = {}
        for block in asked:
            for values in block.stages():
                stage = StageConfig.model_validate(values)
                if stage != made.setdefault(stage.name, stage):
                    raise ValueError(f"win_rate: '{stage.name}' is asked twice, and differently: give 'by' as a list")
        self.stages.extend(stage for name, stage in made.items() if name not in there)
        return self

    @model_validator(mode="before")
    @classmethod
    def _groups(cls, values: Any) -> Any:
        return {**values, "stages": expanded(values.get("stages"))} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _references(self) -> Recipe:
        check_references(self.stages)
        return self

    def stage(self, name: str) -> StageConfig:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def load_recipe(path: Path, *, size: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; `size` applies one of its `sizes`, `overrides` maps dotted keys (`stages.sft.train.method`)."""
    values = read_yaml(path)
    sizes = values.pop("sizes", {}) or {}
    changes: dict[str, Any] = {}
    if size is not None:
        if size not in sizes:
            raise ConfigError(f"{path}: no size '{size}'{did_you_mean(size, sizes)}")
        changes.update(sizes[size])
    changes.update(overrides or {})
    for key, value in changes.items():
        override(values, key, value, where=str(path))
    variables = {name: str(value) for name, value in (values.get("vars") or {}).items()}
    return validate(Recipe, {**filled(values, variables, where=str(path)), "vars": variables}, where=str(path))
