"""The kinds of stage: answer a split, make rows, train, search, cut out a student, judge. Each resumes in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import file_hash, read_json
from ..core.specs import Spec, format_spec, instantiate, parse
from ..core.types import Checkpoint, Cost, Usage
from ..engines.purse import Allowance
from ..verifiers.build import weighted
from .alignment import REFERENCES, JudgeStage
from .done import Done
from .evaluate import Evaluation, evaluate
from .judging import Judging, check_judge, drawn, judge_replies, references, replies
from .making import (
    labeller_facts,
    makers_of,
    read_hashes,
)  # fmt: skip
from .methods import build_prompter, build_strategy, build_trainer
from .naming import placed
from .opening import Opened, open_engine, static_fingerprint
from .points import Bench, Models
from .recipe import EvalStage, Recipe, SearchStage, StageConfig, StudentStage, TrainStage
from .row_making import write_rows
from .stage_tasks import StageTasks
from .training import files_of, student_shape, trainer_of
from .verifying import fingerprints, scorers, with_checkpoints

if TYPE_CHECKING:
    from ..engines.generations import Generations

__all__ = ["Done", "Workshop"]


@dataclass
class Workshop:
    """What stages share: the recipe, its task, the engine in memory, and the stages finished so far."""

    recipe: Recipe
    out: Path
    done: dict[str, Done] = field(default_factory=dict)
    _engine: tuple[str, Opened] | None = None

    @cached_property
    def kept(self) -> Generations | None:
        """The run's cache of generations, if the recipe asks for one."""
        if not self.recipe.cache:
            return None
        from ..engines.generations import Generations

        return Generations(self.out / "generations.sqlite")

    @cached_property
    def tasks(self) -> StageTasks:
        """The tasks of the stages, each loaded once."""
        return StageTasks(self.recipe)

    @cached_property
    def base_fingerprint(self) -> str:
        """What the recipe's model is, by content."""
        return static_fingerprint(self.recipe.model)

    def key(self, stage: StageConfig) -> str:
        """Hash what decides a stage's result: its settings, methods' versions, task, seed and its inputs' keys."""
        config = stage.model_dump(mode="json", by_alias=True, exclude={"label", "lever", "note", "against", "oracle_of"})
        rare = ("search", "student", "judge")
        config = {key: value for key, value in config.items() if key not in rare or value is not None}
        late = {
            "instruction", "teacher", "sources", "task", "draw", "stages", "part", "also", "skip_bad", "labeller", "beside",
        }  # fmt: skip
        for kind in ("eval", "data"):  # a later setting that is not set leaves the key as it was
            if config[kind] is not None:
                config[kind] = {
                    key: value
                    for key, value in config[kind].items()
                    if value is not None or (key not in late and "budget" not in key)
                }
        if stage.train is not None:  # likewise
            config["train"] = {key: value for key, value in config["train"].items() if value is not None}
        inputs = {name: self.done[name].key for name in stage.inputs}
        facts: dict[str, Any] = {"config": config, "inputs": inputs, "seed": self.recipe.seed}
        if self.recipe.task is not None or self.tasks.needed(stage):  # a recipe's own task is in every key, as it always was
            facts["task"] = self.tasks.of(stage).version
        facts["model"] = self.base_fingerprint
        facts["numbers"] = [self.recipe.device, self.recipe.dtype]
        facts["versions"] = self.versions(stage)
        if (asked := stage.eval or stage.search) is not None and (models := scorers(build_strategy(asked.strategy))):
            facts["scorers"] = models
        if stage.judge is not None and (models := fingerprints([stage.judge.by])):
            facts["scorers"] = models
        if stage.data is not None and stage.data.file is not None:
            facts["file"] = file_hash(self.file(stage.data.file))
        if stage.data is not None and (reads := read_hashes(stage.data)):
            facts["reads"] = reads
        if stage.data is not None and (labelled := labeller_facts(stage.data)):
            facts["labeller"] = labelled
        if stage.eval is not None and stage.eval.teacher is not None:
            facts["teacher"] = static_fingerprint(stage.eval.teacher)
        if stage.train is not None:
            facts |= files_of(build_trainer(stage.train.method))
            if models := fingerprints(
                [weighted(s)[1] for s in (*(stage.train.rewards or ()), *(stage.train.watched or ()))]
            ):
                facts["scorers"] = models
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def versions(self, stage: StageConfig) -> list[str]:
        """Name the methods of a stage with their versions; a wrong spec is found here, before anything runs."""
        methods: list[Any] = []
        if stage.eval is not None:
            methods = [build_prompter(stage.eval.prompt), build_strategy(stage.eval.strategy)]
        elif stage.data is not None:
            methods = makers_of(stage, stage.data, self.recipe)
        elif stage.train is not None:
            methods = [trainer_of(stage.train)]
        elif stage.student is not None:
            methods = [student_shape(stage.student)]
        elif stage.search is not None:
            methods = [self._plan(stage.search), build_prompter(stage.search.prompt), build_strategy(stage.search.strategy)]
        elif stage.judge is not None:
            cls = check_judge(stage.judge.by, alone=stage.judge.against is None)
            return [f"{cls.__name__} {getattr(cls, 'version', '1')}"]
        return [f"{type(method).__name__} {getattr(method, 'version', '1')}" for method in methods]

    def file(self, name: str) -> Path:
        """Return a file that a stage reads; raises `DataError` when there is none."""
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no such file: {path}")
        return path

    def run(self, stage: StageConfig, folder: Path, key: str) -> Cost:
        """Run or resume a stage inside its folder and return its cost."""
        if stage.eval is not None:
            return self._eval(stage, stage.eval, folder)
        if stage.data is not None:
            return write_rows(self, stage, stage.data, folder)
        if stage.search is not None:
            return self._search(stage, stage.search, folder)
        if stage.judge is not None:
            return self._judge(stage, stage.judge, folder)
        self._engine = None  # its memory is the trainer's now
        if stage.student is not None:
            return self._student(stage, stage.student, folder, key)
        assert stage.train is not None
        return self._train(stage, stage.train, folder, key)

    def model_ref(self, stage: StageConfig) -> str:
        """Return what to load for a stage: an earlier stage's checkpoint or the recipe's model."""
        if stage.eval is not None and stage.eval.teacher is not None:
            return stage.eval.teacher
        return self.recipe.model if stage.model is None else str(self.done[stage.model].folder / "checkpoint")

    def _eval(self, stage: StageConfig, config: EvalStage, folder: Path) -> Cost:
        ref = self.model_ref(stage)
        opened = self.opened(ref)
        evaluation = Evaluation(
            stage=stage.name,
            task=self.tasks.of(stage),
            examples=self.tasks.examples(stage, config),
            prompt=self.prompt(config),
            strategy=with_checkpoints(config, {name: self.done[name].folder for name in config.scoring}),
            named=config.strategy,
            model=stage.model or opened.name,
            seed=self.recipe.seed,
            max_tokens=config.max_tokens,
            allowance=Allowance.of(**config.allowance),
        )
        return evaluate(evaluation, opened.engine, folder, title=stage.label or stage.name).cost

    def prompt(self, config: EvalStage) -> str:
        """Return an evaluation's prompt, with the instruction that an earlier search found."""
        if config.instruction is None:
            return config.prompt
        found = read_json(self.done[config.instruction].folder / "prompt_search.json")["instruction"]
        if not found:  # no instruction was best
            return config.prompt
        return format_spec(Spec("instructed", {"text": found, "prompt": parse(config.prompt)}))

    def _plan(self, config: SearchStage) -> Any:
        from .prompt_search import PromptSearch

        return instantiate(PromptSearch, {**config.settings, "prompt": config.prompt}, where="search")

    def _search(self, stage: StageConfig, config: SearchStage, folder: Path) -> Cost:
        from .prompt_search import prompt_search

        models = _Kept(device=self.recipe.device, dtype=self.recipe.dtype, keep=self.opened)
        seed, ref = self.recipe.seed, self.model_ref(stage)
        task = self.tasks.of(stage)
        bench = Bench(folder, task, models, strategy=config.strategy, seed=seed, max_tokens=config.max_tokens)
        examples = task.examples(config.split)[: config.limit]
        found = prompt_search(self._plan(config), bench, examples, model=ref, given=config.given)
        counts = found["cost"]["search"]  # the report on held-out examples is no part of finding it
        usage = Usage(**{name: int(counts[name]) for name in ("calls", "prompt", "generated", "scored")})
        return Cost(usage=usage, flops=counts["flops"], flops_spent=counts["flops"], seconds=found["seconds"])

    def _judge(self, stage: StageConfig, config: JudgeStage, folder: Path) -> Cost:
        where, answered = f"stage '{stage.name}'", self.recipe.stage(config.of)
        assert answered.eval is not None
        found = drawn(self.tasks.examples(answered, answered.eval), config.draw, self.recipe.seed, where)
        others = None
        if config.against is not None:
            refers = config.against == REFERENCES
            others = references(found, where) if refers else replies(self.done[config.against].folder, where)
        judging = Judging(
            stage=stage.name,
            task=self.tasks.of(stage),
            examples=found,
            texts=replies(self.done[config.of].folder, where),
            others=others,
            by=placed(config.by, {name: done.folder for name, done in self.done.items()}),
            named=config.by,
            model=config.of,
            seed=self.recipe.seed,
        )
        return judge_replies(judging, folder, title=stage.label or stage.name)

    def opened(self, ref: str) -> Opened:
        """Keep one model in memory: the last one used."""
        if self._engine is None or self._engine[0] != ref:
            self._engine = None
            recipe = self.recipe
            self._engine = (
                ref,
                open_engine(ref, device=recipe.device, dtype=recipe.dtype, slots=recipe.slots, kept=self.kept),
            )
        return self._engine[1]

    def _train(self, stage: StageConfig, config: TrainStage, folder: Path, key: str) -> Cost:
        from ..data.sources import read_rows

        rows = read_rows(self.done[config.data].folder / "rows.jsonl")
        from ..models.load import resolve

        start = Checkpoint(path=resolve(self.model_ref(stage)), base=self.recipe.model, key=key)
        folders = {name: done.folder for name, done in self.done.items()}
        use = self.tasks.use(config.task, stage.name) if self.tasks.needed(stage) else None
        trained: Checkpoint = trainer_of(config, folders, use)(start, rows, folder, seed=self.recipe.seed)
        return trained.cost

    def _student(self, stage: StageConfig, config: StudentStage, folder: Path, key: str) -> Cost:
        from ..training.student import make_student

        ref, shape, recipe = self.model_ref(stage), student_shape(config), self.recipe
        made = make_student(ref, folder / "checkpoint", shape, seed=recipe.seed, device=recipe.device, key=key)
        return made.checkpoint.cost

    def close(self) -> None:
        """Let go of the model and of the cache's file."""
        self._engine = None
        kept = self.__dict__.get("kept")
        if kept is not None:
            kept.close()

    def ancestors(self, name: str) -> list[str]:
        """Return every stage that a stage builds on, itself included, in the recipe's order."""
        wanted, queue = {name}, [name]
        while queue:
            for parent in self.recipe.stage(queue.pop()).inputs:
                if parent not in wanted:
                    wanted.add(parent)
                    queue.append(parent)
        return [stage.name for stage in self.recipe.stages if stage.name in wanted]

    def fixed_cost(self, stage: StageConfig) -> Cost:
        """Return what had to be paid once before this evaluation: training, the sampling that made its data, searching."""
        before = {name for source in stage.inputs for name in self.ancestors(source)}
        return sum((self.done[name].cost for name in sorted(before)), Cost())


@dataclass
class _Kept(Models):
    """Models that the workshop opens and keeps."""

    keep: Callable[[str], Opened] = open_engine

    def open(self, ref: str) -> Opened:
        return self.keep(ref)
