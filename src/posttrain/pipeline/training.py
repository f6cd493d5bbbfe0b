"""What stages need that make a model: the trainer with what earlier stages made for it, or the shape of a student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.files import file_hash
from ..core.protocols import Trainer
from ..environments.build import files_of as files_of_environment
from ..environments.build import verifiers_of
from ..verifiers.build import weighted
from .methods import build_trainer
from .naming import STAGE, placed
from .opening import static_fingerprint
from .recipe import StudentStage, TaskUse, TrainStage
from .verifying import fingerprints

if TYPE_CHECKING:
    from ..models.student import StudentShape

__all__ = ["files_of", "student_shape", "trainer_of"]


def trainer_of(
    config: TrainStage, folders: Mapping[str, Path] | None = None, task: TaskUse | None = None
) -> Trainer:  # fmt: skip
    """Return a stage's trainer with its task; with the folders of finished stages, also with what it takes of these.

    Raises `ConfigError` when the trainer takes no such thing, or names its own.
    """
    method = config.method if folders is None else placed(config.method, folders)
    trainer: Any = _online(config, build_trainer(method), folders, task)
    given: dict[str, str] = {}
    if config.eval_data is not None:
        if not hasattr(trainer, "eval_data") or trainer.eval_data is not None:
            raise ConfigError(
                f"'{config.method}' takes no eval_data from a stage, or names its own: leave 'eval_data: "
                f"{config.eval_data}' out of one of them"
            )
        given["eval_data"] = f"{config.eval_data}/rows.jsonl"
    if config.teacher is not None:
        if getattr(trainer, "teacher", None) != "":
            why = "has a teacher of its own" if hasattr(trainer, "teacher") else "learns from no teacher"
            raise ConfigError(f"{config.method}: {why}, so the stage's 'teacher: {config.teacher}' must be left out")
        given["teacher"] = f"{config.teacher}/checkpoint"
    if folders is None:
        return trainer  # type: ignore[no-any-return]
    paths = {name: str(folders[path.partition("/")[0]] / path.partition("/")[2]) for name, path in given.items()}
    return replace(trainer, **paths)  # type: ignore[no-any-return]


def _online(config: TrainStage, trainer: Any, folders: Mapping[str, Path] | None, task: TaskUse | None) -> Any:
    """Return a trainer that asks questions with its task and its rewards."""
    if not getattr(trainer, "asks", False):
        for key in ("task", "rewards", "watched"):
            if getattr(config, key) is not None:
                raise ConfigError(f"'{config.method}' asks no questions, so the stage's '{key}' must be left out")
        return trainer
    if trainer.task:
        raise ConfigError(f"'{config.method}': in a recipe the task is the stage's or the recipe's: leave task= out here")
    if task is not None:
        trainer = replace(trainer, task=task.task, task_data=task.data)
    for key in ("rewards", "watched"):
        specs = getattr(config, key)
        if specs is None:
            continue
        if getattr(trainer, key) != getattr(type(trainer)(), key):
            raise ConfigError(f"'{config.method}': both the method and its stage have {key}: leave one of them out")
        for spec in specs:
            weighted(spec)  # mistakes first
        trainer = replace(trainer, **{key: tuple(specs if folders is None else (placed(spec, folders) for spec in specs))})
    return trainer


def files_of(trainer: Any) -> dict[str, str]:
    """Return what decides a trainer's result beside its settings: the content of held-out rows, teacher, value model."""
    found = {}
    if held_out := getattr(trainer, "eval_data", None):
        found["eval_data"] = file_hash(Path(held_out)) if Path(held_out).is_file() else held_out
    if teacher := getattr(trainer, "teacher", ""):
        found["teacher"] = static_fingerprint(teacher)
    if (begins := getattr(trainer, "value_start", "")) and not begins.startswith(STAGE):  # a stage's key is an input
        found["value_start"] = static_fingerprint(begins)
    if environment := getattr(trainer, "environment", ""):
        decides = [*map(file_hash, files_of_environment(environment)), *fingerprints(verifiers_of(environment)).values()]
        found |= {"environment": ",".join(decides)} if decides else {}
    return found


def student_shape(config: StudentStage) -> StudentShape:
    """Return the shape of a stage's student; raises `ConfigError` for an unknown size."""
    from ..models.student import StudentShape, shape_named

    return StudentShape(**config.numbers) if config.size is None else shape_named(config.size)
