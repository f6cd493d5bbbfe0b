"""The kinds of stage: answer a split, make rows, train, search, cut out a student, judge. Each resumes in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import file_hash, read_json, write_atomic, write_json
from ..core.protocols import Asking
from ..core.specs import Spec, format_spec, instantiate, parse
from ..core.types import Checkpoint, Cost, Made, Sampled, Usage
from ..engines.purse import Allowance
from .alignment import REFERENCES, JudgeStage
from .done import Done
from .evaluate import Evaluation, evaluate, load_sampled
from .judging import Judging, check_judge, drawn, judge_replies, references, replies
from .labelling import ask_labeller, beside
from .making import (
    draw_rows,
    joined,
    labeller_facts,
    makers_of,
    on_rows,
    part_of_rows,
    read_hashes,
    read_sources,
    read_stages,
)  # fmt: skip
from .methods import build_maker, build_prompter, build_strategy, build_trainer
from .naming import placed
from .opening import Opened, open_engine, static_fingerprint
from .points import Bench, Models
from .recipe import DataStage, EvalStage, Recipe, SearchStage, StageConfig, StudentStage, TrainStage
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
            facts["file"] = file_hash(self._file(stage.data.file))
        if stage.data is not None and (reads := read_hashes(stage.data)):
            facts["reads"] = reads
        if stage.data is not None and (labelled := labeller_facts(stage.data)):
            facts["labeller"] = labelled
        if stage.eval is not None and stage.eval.teacher is not None:
            facts["teacher"] = static_fingerprint(stage.eval.teacher)
        if stage.train is not None:
            facts |= files_of(build_trainer(stage.train.method))
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

    def _file(self, name: str) -> Path:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no such file: {path}")
        return path

    def run(self, stage: StageConfig, folder: Path, key: str) -> Cost:
        """Run or resume a stage inside its folder and return its cost."""
        if stage.eval is not None:
            return self._eval(stage, stage.eval, folder)
        if stage.data is not None:
            return self._data(stage, stage.data, folder)
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
        opened = self._open(ref)
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

        models = _Kept(device=self.recipe.device, dtype=self.recipe.dtype, keep=self._open)
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

    def _open(self, ref: str) -> Opened:
        """Keep one model in memory: the last one used."""
        if self._engine is None or self._engine[0] != ref:
            self._engine = None
            recipe = self.recipe
            self._engine = (
                ref,
                open_engine(ref, device=recipe.device, dtype=recipe.dtype, slots=recipe.slots, kept=self.kept),
            )
        return self._engine[1]

    def _data(self, stage: StageConfig, config: DataStage, folder: Path) -> Cost:
        from ..data.readable import readable
        from ..data.rows import rows_with_scores
        from ..data.sources import read_rows

        cost = Cost()
        if config.file is not None:
            read: Sequence[Mapping[str, Any]] = read_rows(self._file(config.file))
            counts: Mapping[str, int] = {}
            if config.skip_bad:
                found = readable(read, config.file, skip=True, mend="")
                read, counts = found.rows, {"bad_rows": found.bad}
            rows: Sequence[Mapping[str, Any]] = rows_with_scores(read, config.file)
            counts = {"rows": len(rows), **counts}
        else:
            try:
                made, cost = self._rows(stage, config, folder)
            except DataError as error:
                raise DataError(f"stage '{stage.name}': {error}") from None
            rows, counts = made.rows, made.counts
            if made.facts or made.notes:
                write_json(folder / "facts.json", {**made.facts, "notes": list(made.notes)})
        if config.part is not None:
            rows, counts = part_of_rows(rows, counts, config.part, stage=stage.name)
        if config.draw is not None:
            rows, counts = draw_rows(rows, counts, config.draw, stage=stage.name, seed=self.recipe.seed)
        if config.also is not None:
            rows, counts = joined(read_rows(self.done[config.also].folder / "rows.jsonl"), rows, counts)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(folder / "rows.jsonl", text)
        write_json(folder / "counts.json", dict(counts))
        return cost

    def _rows(self, stage: StageConfig, config: DataStage, folder: Path) -> tuple[Made, Cost]:
        seed = self.recipe.seed
        if config.sources is not None:
            return read_sources(config.sources, seed=seed), Cost()
        if config.stages is not None:
            folders = {name: done.folder for name, done in self.done.items()}
            return read_stages(config.stages, folders, seed=seed), Cost()
        return self._made(stage, config, folder)

    def _made(self, stage: StageConfig, config: DataStage, folder: Path) -> tuple[Made, Cost]:
        assert config.maker is not None
        maker = build_maker(config.maker)
        source = None if config.source is None else self.recipe.stage(config.source)
        if source is not None and source.data is not None:
            maker = on_rows(maker, self.done[source.name].folder / "rows.jsonl")
        asked = source.eval if source is not None else None
        labeller = None if source is None else self._labeller(config, source)
        sampled = [] if source is None or asked is None else self._sampled(source, asked, labeller)
        if config.beside is not None:
            other = self.recipe.stage(config.beside)
            assert other.eval is not None
            sampled = beside(sampled, self._sampled(other, other.eval, labeller), f"stage '{stage.name}'")
        prompter = build_prompter("zero_shot" if asked is None else self.prompt(asked))
        task: Any = self.tasks.of(stage) if self.tasks.needed(stage) else None  # a maker of mixes asks nothing
        seed, cost = self.recipe.seed, Cost()
        if isinstance(maker, Asking) and labeller is not None:
            sampled, cost = ask_labeller(
                maker, config.maker, task=task, prompter=prompter, sampled=sampled, opened=self._open(labeller),
                folder=folder, stage=stage.name, seed=seed, title=stage.label or stage.name,
            )  # fmt: skip
        return maker(task, prompter, sampled, seed=seed), cost

    def _sampled(self, source: StageConfig, asked: EvalStage, labeller: str | None) -> list[Sampled]:
        """Return an evaluation's graded responses, marked as the labeller's own where its model gave them."""
        found = load_sampled(self.done[source.name].folder, self.tasks.examples(source, asked))
        own = self.model_ref(source) == labeller
        return [replace(item, own=(own,) * len(item.texts)) for item in found]

    def _labeller(self, config: DataStage, source: StageConfig) -> str:
        """Return what to load as a data stage's labeller: an earlier stage's model, a model, or the one that was sampled."""
        if config.labelled_by is not None:
            return str(self.done[config.labelled_by].folder / "checkpoint")
        return config.labeller or self.model_ref(source)

    def _train(self, stage: StageConfig, config: TrainStage, folder: Path, key: str) -> Cost:
        from ..data.sources import read_rows

        rows = read_rows(self.done[config.data].folder / "rows.jsonl")
        from ..models.load import resolve

        start = Checkpoint(path=resolve(self.model_ref(stage)), base=self.recipe.model, key=key)
        folders = {name: done.folder for name, done in self.done.items()}
        trained: Checkpoint = trainer_of(config, folders)(start, rows, folder, seed=self.recipe.seed)
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
