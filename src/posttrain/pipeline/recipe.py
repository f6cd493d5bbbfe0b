"""Recipes: a YAML file that names a model, a task and the stages to run, one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..core.config import Strict, read_yaml, validate
from ..core.errors import ConfigError, did_you_mean
from ..core.specs import parse, replaced

__all__ = ["STAGE", "DataStage", "EvalStage", "Recipe", "SearchStage", "StageConfig", "TrainStage", "load_recipe"]

STAGE = "stage:"  # before the name of a training stage, where a verifier's setting takes a model
Lever = Literal["prompting", "test-time", "fine-tuning", "preference", "combined", "oracle"]


class EvalStage(Strict):
    """Answer a split of the task with a prompt and a strategy."""

    teacher: str | None = None  # another model than the recipe's, by any reference: its replies are data
    split: str = "test"
    limit: int | None = Field(default=None, ge=1)
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
        found: dict[str, None] = {}

        def note(text: str) -> str:
            for name in re.findall(rf"{STAGE}([a-z0-9][a-z0-9_-]*)", text):
                found[name] = None
            return text

        replaced(parse(self.strategy), note)
        return tuple(found)

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
        return self


class SearchStage(Strict):
    """Search for an instruction (`PromptSearch` has the settings) and measure it on a split the search never sees."""

    split: str = "test"
    limit: int | None = Field(default=None, ge=1)
    prompt: str = "zero_shot"
    strategy: str = "greedy"
    given: list[str] = Field(default_factory=list)  # instructions to try beside the proposals
    settings: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int | None = Field(default=None, ge=1)


class DataStage(Strict):
    """Make training rows: by a maker (from the task's solutions, an evaluation's samples, a mix), or read them."""

    maker: str | None = None
    source: str | None = Field(default=None, alias="from")  # an earlier evaluation; for a maker of mixes, a data stage
    file: str | None = None
    sources: str | list[str | dict[str, Any]] | None = None  # several: `a.jsonl*0.7,b.parquet*0.3`, or a list of the same

    @model_validator(mode="after")
    def _one_source(self) -> DataStage:
        if sum(given is not None for given in (self.maker, self.file, self.sources)) != 1:
            raise ValueError("give exactly one of 'maker', 'file' and 'sources'")
        return self


class TrainStage(Strict):
    """Train with a method on an earlier data stage's rows.

    `eval_data` names a data stage whose rows are held out, `teacher` the training stage that a distillation learns from.
    """

    method: str
    data: str
    eval_data: str | None = None
    teacher: str | None = None


class StageConfig(Strict):
    """One stage: exactly one of its kinds; `model` names an earlier training stage (default: the recipe's)."""

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

    @model_validator(mode="after")
    def _one_kind(self) -> StageConfig:
        if sum(part is not None for part in (self.eval, self.data, self.train, self.search)) != 1:
            raise ValueError("a stage needs exactly one of 'eval', 'data', 'train' and 'search'")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages this one reads."""
        names = [self.model, self.eval.instruction if self.eval else None]
        names += self.eval.scoring if self.eval else ()
        names += [self.data.source] if self.data else []
        names += [self.train.data, self.train.eval_data, self.train.teacher] if self.train else []
        return tuple(name for name in names if name is not None)


class Recipe(Strict):
    """The whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    model: str
    task: str
    data: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    slots: int = Field(default=128, ge=1)
    cache: bool = False  # keep what is generated in the run folder: stages and resumed runs generate nothing twice
    examples: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    stages: list[StageConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _references(self) -> Recipe:
        earlier: dict[str, StageConfig] = {}
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"two stages are called '{stage.name}'")
            for name in (*stage.inputs, *([stage.against] if stage.against else [])):
                if name not in earlier:
                    near = did_you_mean(name, earlier)
                    raise ValueError(f"stage '{stage.name}' needs '{name}', which is no earlier stage{near}")
            if stage.model is not None and earlier[stage.model].train is None:
                raise ValueError(f"stage '{stage.name}': model '{stage.model}' is not a training stage")
            for key in ("data", "eval_data"):
                source = getattr(stage.train, key, None)
                if source is not None and earlier[source].data is None:
                    raise ValueError(f"stage '{stage.name}': {key} '{source}' is not a data stage")
            if stage.train is not None and stage.train.teacher is not None and earlier[stage.train.teacher].train is None:
                raise ValueError(f"stage '{stage.name}': teacher '{stage.train.teacher}' is not a training stage")
            if stage.eval is not None and stage.eval.teacher is not None and stage.model is not None:
                raise ValueError(f"stage '{stage.name}': give either 'model', an earlier stage, or 'teacher', another model")
            for name in stage.eval.scoring if stage.eval is not None else ():
                if earlier[name].train is None:
                    raise ValueError(f"stage '{stage.name}': {STAGE}{name} in its strategy is not a training stage")
            if stage.data is not None and stage.data.source is not None:
                source = earlier[stage.data.source]
                if source.eval is None and source.data is None:
                    raise ValueError(f"stage '{stage.name}': from '{source.name}' is no evaluation and no data stage")
            if (
                stage.eval is not None
                and stage.eval.instruction is not None
                and earlier[stage.eval.instruction].search is None
            ):
                raise ValueError(f"stage '{stage.name}': instruction '{stage.eval.instruction}' is not a search stage")
            earlier[stage.name] = stage
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
        _override(values, key, value, where=str(path))
    return validate(Recipe, values, where=str(path))


def _override(values: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set a dotted key; stages are addressed by their names."""
    current: Any = values
    *path, last = key.split(".")
    for part in path:
        if isinstance(current, list):
            named = {item.get("name"): item for item in current if isinstance(item, dict)}
            if part not in named:
                raise ConfigError(f"{where}: '{key}': no stage '{part}'{did_you_mean(part, [str(n) for n in named])}")
            current = named[part]
        elif isinstance(current, dict):
            current = current.setdefault(part, {})
        else:
            raise ConfigError(f"{where}: '{key}': '{part}' is inside a plain value")
    if not isinstance(current, dict):
        raise ConfigError(f"{where}: '{key}' names no setting")
    current[last] = value
