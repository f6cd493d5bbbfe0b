"""Which task a stage answers, and which of its examples."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.seeds import rng
from ..core.types import Example
from .methods import build_trainer
from .recipe import EvalStage, Recipe, StageConfig, TaskUse

__all__ = ["StageTasks"]


class StageTasks:
    """The tasks of a recipe's stages, each loaded once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._loaded: dict[str | None, Task] = {}

    def needed(self, stage: StageConfig) -> bool:
        """Whether a stage asks a task's questions; what cuts, reads rows or mixes them does not, nor does most training."""
        if stage.train is not None:
            return bool(getattr(build_trainer(stage.train.method), "asks", False))
        if stage.data is None:
            return not stage.makes_a_model
        source = None if stage.data.source is None else self._recipe.stage(stage.data.source)
        return stage.data.maker is not None and (source is None or source.data is None)

    def of(self, stage: StageConfig) -> Task:
        """Return a stage's task: its own, that of the evaluation whose samples it takes, or the recipe's.

        What judges is of the task whose replies it reads. Raises `ConfigError` when there is none.
        """
        if stage.judge is not None:
            return self.of(self._recipe.stage(stage.judge.of))
        name = getattr(stage.eval or stage.data or stage.train, "task", None)
        if stage.data is not None and stage.data.source is not None:
            source = self._recipe.stage(stage.data.source)
            name = source.eval.task if source.eval is not None else None
        if name not in self._loaded:
            self._loaded[name] = self._load(name, stage.name)
        return self._loaded[name]

    def examples(self, stage: StageConfig, config: EvalStage) -> Sequence[Example]:
        """Return what an evaluation answers: the first examples of its split (or part), or as many drawn, in order."""
        task = self.of(stage)
        found = config.part_of(task.examples(config.split))
        if config.draw is None:
            return found[: config.limit]
        if config.draw > len(found):
            raise ConfigError(
                f"stage '{stage.name}': draw is {config.draw}, and the {config.split} split of {task.name} has {len(found)} "
                "examples: draw fewer"
            )
        drawn = rng(self._recipe.seed, "draw", config.split).sample(range(len(found)), config.draw)
        return [found[i] for i in sorted(drawn)]

    def check_rungs(self) -> None:
        """Raise `ConfigError` unless the report can compare its rungs: those of a task answer the same examples."""
        first: dict[tuple[str | None, str], tuple[StageConfig, EvalStage]] = {}
        for stage in self._recipe.stages:
            if (config := stage.eval) is None or stage.lever is None:
                continue
            kind = stage.lever if stage.lever in ("retention", "diversity") else ""  # these two are of no ladder
            other, theirs = first.setdefault((config.task, kind), (stage, config))
            if all(getattr(config, name) == getattr(theirs, name) for name in ("split", "part", "limit", "draw")):
                continue
            own, found = ([example.id for example in self.examples(s, c)] for s, c in ((stage, config), (other, theirs)))
            if set(own) != set(found):
                raise ConfigError(
                    f"stages '{other.name}' ({len(found)} examples) and '{stage.name}' ({len(own)}) are rungs of one task "
                    "and answer different examples, so they cannot be compared: give them the same split, part, limit and "
                    "draw, or take the lever from one"
                )

    def use(self, name: str | None, stage: str) -> TaskUse:
        """Return what a stage's task is made of; `name` is its own setting. Raises `ConfigError` when there is none."""
        recipe = self._recipe
        if name is not None:
            return recipe.tasks.get(name) or TaskUse(task=name)
        if recipe.task is None:
            raise ConfigError(f"stage '{stage}' has no task: name one in the stage or in the recipe")
        return TaskUse(task=recipe.task, data=recipe.data, examples=recipe.examples)

    def _load(self, name: str | None, stage: str) -> Task:
        from ..tasks.registry import load_task

        use = self.use(name, stage)
        return load_task(use.task, data=use.data, seed=self._recipe.seed, sizes=use.examples or None)
