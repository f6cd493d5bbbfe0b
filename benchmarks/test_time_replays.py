"""Test-time methods replayed on pools of samples: what voting, adaptive voting, allocation and a better model bring.

    python benchmarks/test_time_replays.py                 # size full, into docs/results/test_time/
    python benchmarks/test_time_replays.py --size smoke    # a rehearsal: made-up answers

Reads benchmarks/test_time.yaml. The header (tasks, n, seed, models, budget) is printed and written before anything runs; a
folder with another header is refused. Pools and checkpoints go to --runs; run the same command after a kill and it goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain.cli.curving import run_curve
from posttrain.core.config import Strict, read_yaml, validate
from posttrain.core.errors import ConfigError, PosttrainError, did_you_mean
from posttrain.core.files import read_json, write_atomic, write_json
from posttrain.core.progress import progress
from posttrain.core.specs import Spec, format_spec
from posttrain.pipeline.curve import CurveRequest
from posttrain.pipeline.manifest import code_version, hardware, packages
from posttrain.pipeline.pools import Sampling, Source, make_pool, pool_folder, read_pool, voted_scores
from posttrain.pipeline.recipe import Recipe
from posttrain.pipeline.run import run_recipe
from posttrain.report.curve_words import saving_sentence
from posttrain.report.curves import curve_table
from posttrain.report.words import interval, percent, points, probability, si
from posttrain.stats.paired import compare, holm
from posttrain.tasks.registry import load_task

FINDINGS = ("adaptive", "compute_optimal", "compute_optimal_judged", "verified_search")
ROOT = Path(__file__).resolve().parents[1]
AtLeastOne = Annotated[int, Field(ge=1)]


class Trained(Strict):
    """A model fine-tuned here on the task's worked solutions."""

    base: str
    rows: AtLeastOne
    method: str
    steps: bool = True  # false: their answers alone


class TaskConfig(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: str
    data: str | None = None
    prompt: str = "zero_shot"
    policy: str | Trained
    better: str | Trained


class Config(Strict):
    title: str
    seed: int = 0
    questions: AtLeastOne
    samples: AtLeastOne
    better_samples: AtLeastOne | None = None  # of the better model, which a curve is only compared with
    sizes_n: list[AtLeastOne]
    vote: AtLeastOne
    temperature: float = Field(gt=0)
    threshold: float = Field(gt=0.5, lt=1)
    pilot: AtLeastOne
    verifier: str
    accept: float = 1.0  # its score from which a sample is accepted
    max_tokens: int | None = None
    slots: AtLeastOne = 128
    device: str = "auto"
    dtype: str = "auto"
    draws: int = Field(default=2000, ge=100)
    models: dict[str, str] = Field(default_factory=dict)  # instead of every task's own, to rehearse
    tasks: list[TaskConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.better_samples is not None and self.better_samples > self.samples:
            raise ValueError("better_samples must be at most samples")
        if max(self.sizes_n) != self.samples or self.vote not in self.sizes_n or self.pilot > self.vote:
            raise ValueError("the largest of sizes_n must be samples, vote one of them, and pilot at most vote")
        if self.models.keys() - {"policy", "better"}:
            raise ValueError("'models' takes policy and better")
        return self


def load(path: Path, size: str) -> Config:
    values = read_yaml(path)
    sizes = values.pop("sizes", {}) or {}
    if size not in sizes:
        raise ConfigError(f"{path}: no size '{size}'{did_you_mean(size, sizes)}")
    return validate(Config, values | sizes[size], where=str(path))


# Before the run -------------------------------------------------------------------------------------------------------


def header(config: Config, size: str) -> dict[str, Any]:
    """What is fixed before anything runs."""
    replies = config.questions * (config.samples + (config.better_samples or config.samples) + 2)
    return {
        "title": config.title,
        "size": size,
        "tasks": [task.task for task in config.tasks],
        "questions": config.questions,
        "samples": config.samples,
        "seed": config.seed,
        "models": {
            task.name: {role: str(config.models.get(role, getattr(task, role))) for role in ("policy", "better")}
            for task in config.tasks
        },
        "budget": f"{replies:,} replies a task, at most {config.max_tokens or 256} tokens each",
        "sampling": f"temperature {config.temperature:g}, and greedy",
        "targets": {
            "adaptive": "where full voting is right on 70% or more: at most 1/3 of the samples within 0.2 points, "
            f"threshold {config.threshold:g}, at most {config.samples} samples",
            "compute_optimal": f"same accuracy at 1/2 the tokens of uniform voting, at the budget of {config.vote} samples, "
            f"held out, pilot of {config.pilot} included",
            "verified_search": "same accuracy at 1/2 the tokens of the better uniform way, at the same budget; "
            f"{config.pilot} samples at a time",
        },
        "settings": config.model_dump(mode="json"),
    }


def claim(out: Path, told: dict[str, Any]) -> None:
    path = out / "header.json"
    if path.is_file() and read_json(path) != told:
        raise ConfigError(f"{path} was written for other settings: choose another --out, or remove that folder")
    write_json(path, told)
    for name in ("title", "size", "tasks", "questions", "samples", "seed", "models", "budget", "sampling", "targets"):
        print(f"{name}: {told[name]}", flush=True)


# Models ---------------------------------------------------------------------------------------------------------------


def model_of(config: Config, task: TaskConfig, role: str, runs: Path, path: Path) -> tuple[str, float]:
    """Return the model's reference and what training it cost in FLOPs; a trained one is trained, or found finished."""
    given = config.models.get(role, getattr(task, role))
    if isinstance(given, str):
        return given, 0.0
    recipe = Recipe.model_validate(
        {
            "name": f"{task.name}-{role}",
            "model": given.base,
            "task": task.task,
            "data": task.data,
            "seed": config.seed,
            "device": config.device,
            "dtype": config.dtype,
            # the test split as it will be asked: training leaves its questions out
            "examples": {"test": config.questions, "validation": 1, "train": given.rows},
            "stages": [
                {"name": "worked", "data": {"maker": named("worked_examples", n=given.rows, steps=given.steps)}},
                {"name": "sft", "train": {"method": given.method, "data": "worked"}},
            ],
        }
    )
    folder = runs / f"{task.name}-{role}-training"
    run_recipe(recipe, path, folder, lambda shop, console: {})
    return str(folder / "02-sft" / "checkpoint"), float(read_json(folder / "02-sft" / "DONE.json")["cost"]["flops"])


# One task -------------------------------------------------------------------------------------------------------------


def replay(config: Config, task: TaskConfig, runs: Path, out: Path, path: Path) -> dict[str, Any]:
    policy, policy_flops = model_of(config, task, "policy", runs, path)
    better, better_flops = model_of(config, task, "better", runs, path)
    source = Source(
        task=task.task,
        prompt=task.prompt,
        data=task.data,
        limit=config.questions,
        max_tokens=config.max_tokens,
        seed=config.seed,
        slots=config.slots,
        device=config.device,
        dtype=config.dtype,
    )
    warm = {} if config.temperature == 0.7 else {"temperature": config.temperature}
    voting = named("self_consistency", **warm)
    adaptive = named("adaptive_consistency", **warm, threshold=config.threshold)
    optimal = named("compute_optimal", **warm, pilot=config.pilot)
    judged = named("compute_optimal", **warm, pilot=config.pilot, verifier=config.verifier, accept=config.accept)
    ranked = [named("best_of_n", **warm)]  # by likelihood
    if config.verifier != "likelihood":
        ranked.append(named("best_of_n", **warm, verifier=config.verifier))
    weighted = named("best_of_n", **warm, verifier=config.verifier, weighted=True)
    search = named(
        "verified_search", **warm, feedback=False, verifier=config.verifier, threshold=config.accept, wave=config.pilot
    )
    methods = ["greedy", named("sample", **warm), voting, adaptive, optimal, judged, search, *ranked, weighted]
    common: dict[str, Any] = {"source": source, "sizes": config.sizes_n, "draws": config.draws, "keep": runs / task.name}
    found = run_curve(
        CurveRequest(models=[f"policy={policy}"], strategies=methods, out=out / task.name / "methods", **common)
    )
    few = [] if config.better_samples is None else better_pools(config, task, runs, better, source)
    crossing = run_curve(
        CurveRequest(
            models=[f"policy={policy}", *([] if few else [f"better={better}"])],
            pools=[f"better={folder}" for folder in few],
            strategies=["greedy", voting, adaptive],
            out=out / task.name / "better_model",
            **common,
        )
    )
    samples = Sampling(temperature=config.temperature).strategy(config.samples)
    loaded = load_task(task.task, data=task.data, seed=config.seed)
    pools = {
        strategy: read_pool(pool_folder(runs / task.name, "policy", policy, source, strategy), "policy", loaded)
        for strategy in (samples, "greedy")
    }
    votes = voted_scores(pools[samples], config.vote)
    greedy = voted_scores(pools["greedy"], 1)
    pair = compare([votes[example] for example in greedy], list(greedy.values()))
    return {
        "name": task.name,
        "task": found["task"],
        "questions": found["questions"],
        "rates": [{k: v for k, v in model.items() if k != "folder"} for model in crossing["models"]],
        "training_flops": {"policy": policy_flops, "better": better_flops},
        "vote": {
            "n": config.vote,
            "accuracy": sum(votes.values()) / len(votes),
            "greedy": sum(greedy.values()) / len(greedy),
            "difference": pair.difference,
            "ci95": list(pair.ci95),
            "gained": pair.gained,
            "lost": pair.lost,
            "p": pair.p,
        },
        "adaptive": adaptive_target(
            next(s for s in found["savings"] if s["strategy"] == adaptive and s["n"] == config.samples)
        ),
        "compute_optimal": optimal_target(
            next(s for s in found["savings"] if s["strategy"] == optimal and s["n"] == config.vote)
        ),
        "compute_optimal_judged": optimal_target(against_better(found, judged, config.vote)),
        "verified_search": optimal_target(against_better(found, search, config.vote)),
        "methods": found,
        "better_model": crossing,
    }


def better_pools(config: Config, task: TaskConfig, runs: Path, better: str, source: Source) -> list[Path]:
    """Make the better model's smaller pool and its greedy replies; return their folders."""
    folders = []
    for strategy in (Sampling(temperature=config.temperature).strategy(config.better_samples or config.samples), "greedy"):
        folders.append(pool_folder(runs / task.name, "better", better, source, strategy))
        make_pool(folders[-1], better, source, strategy)
    return folders


def against_better(found: dict[str, Any], strategy: str, n: int) -> dict[str, Any]:
    """Return the saving against the better of both uniform ways: a verifier that says nothing would be easy to beat."""
    savings = [s for s in found["savings"] if s["strategy"] == strategy and s["n"] == n]
    return max(savings, key=lambda saving: float(saving["uniform_accuracy"]))


def named(name: str, **settings: Any) -> str:
    return format_spec(Spec(name, settings))


def adaptive_target(saving: dict[str, Any]) -> dict[str, Any]:
    applies = saving["uniform_accuracy"] >= 0.7
    met = saving["cost_ratio"] <= 1 / 3 and saving["difference"] >= -0.002
    return saving | {
        "target": ("met" if met else "missed") if applies else "does not apply: full voting is right on less than 70%"
    }


def optimal_target(saving: dict[str, Any]) -> dict[str, Any]:
    return saving | {"target": "met" if saving["fraction"] <= 0.5 else "missed"}


# The page -------------------------------------------------------------------------------------------------------------


def page(told: dict[str, Any], found: list[dict[str, Any]], made: dict[str, Any]) -> str:
    lines = [f"# {told['title']}", ""]
    if told["size"] == "smoke":
        lines += ["A rehearsal with made-up answers: these numbers say nothing about the methods.", ""]
    lines += ["| fixed before the run | |", "|---|---|"]
    lines += [f"| {name} | {told[name]} |" for name in ("size", "questions", "samples", "seed", "sampling", "budget")]
    lines += [f"| task {task['name']} | `{task['task']}` |" for task in told["settings"]["tasks"]]
    lines += [
        f"| models of {name} | {'; '.join(f'{r}: {m}' for r, m in roles.items())} |"
        for name, roles in told["models"].items()
    ]
    lines += [f"| target, {name.replace('_', '-')} | {text} |" for name, text in told["targets"].items()]
    lines += [f"| code, hardware | {made['code']}; {made['hardware']['processor']}, {made['hardware']['cores']} cores |"]
    lines += [
        "",
        "Methods are expectations over subsets and orders of the pool, with intervals over questions; the vote against "
        "greedy is paired, question by question.",
        "",
        "## The vote against greedy",
        "",
    ]
    lines += [
        "| task | greedy | vote | samples | points [95%] | gained, lost | p (Holm) |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for one in found:
        v = one["vote"]
        told_points = f"{points(v['difference'])} {interval(v['ci95'])}"
        lines.append(
            f"| {one['name']} | {percent(v['greedy'])} | {percent(v['accuracy'])} | {v['n']} | {told_points} | "
            f"{v['gained']}, {v['lost']} | {probability(v['p_holm']).removeprefix('= ')} |"
        )
    for key, title in (
        ("adaptive", "Adaptive consistency against full voting"),
        ("compute_optimal", "Compute-optimal, by agreement, against uniform voting"),
        (
            "compute_optimal_judged",
            "Compute-optimal, by accepted samples, against the better uniform way",
        ),
        ("verified_search", "Sampling until one is accepted, against the better uniform way"),
    ):
        lines += ["", f"## {title}", ""]
        lines += [
            f"- **{one['name']}**: {saving_sentence(one[key], several=False)} Target: {one[key]['target']}." for one in found
        ]
    for one in found:
        figure = "accuracy_by_tokens"
        lines += ["", f"## {one['name']}", "", f"`{one['task']}`, n = {one['questions']} questions.", ""]
        lines += [
            f"![Accuracy against tokens of all methods]({one['name']}/methods/figures/{figure}.png)",
            "",
            curve_table(one["methods"]),
        ]
        lines += ["### Against the better model", ""]
        axis = "accuracy_by_flops" if one["better_model"]["unit"] == "flops" else figure
        lines += [f"![Both models]({one['name']}/better_model/figures/{axis}.png)", ""]
        crossings = len(one["better_model"]["crossings"])
        lines += [f"- {sentence}" for sentence in one["better_model"]["sentences"][-crossings:] if crossings]
        training = one["training_flops"]
        if any(training.values()):
            lines.append(
                f"- Training cost {si(training['policy'])} (policy) and {si(training['better'])} FLOPs (better), once."
            )
        for rates in one["rates"]:
            lines.append(
                f"- {rates['model']}, `{rates['samples']}`: unparsed {percent(rates['unparsed_rate'])}, cut by length "
                f"{percent(rates['truncated_rate'])}."
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "test_time.yaml")
    parser.add_argument("--size", default="full", help="smoke, small or full [full]")
    parser.add_argument("--runs", type=Path, help="pools and checkpoints [runs/test-time-SIZE]")
    parser.add_argument("--out", type=Path, help="results [docs/results/test_time; for smoke: RUNS/results]")
    asked = parser.parse_args()
    try:
        config = load(asked.config, asked.size)
        runs = asked.runs or ROOT / "runs" / f"test-time-{asked.size}"
        out = asked.out or (runs / "results" if asked.size == "smoke" else ROOT / "docs" / "results" / "test_time")
        told = header(config, asked.size)
        claim(out, told)
        found = []
        with progress("tasks", len(config.tasks), unit="tasks") as advance:
            for task in config.tasks:
                found.append(replay(config, task, runs, out, asked.config))
                advance(1)
    except PosttrainError as error:
        raise SystemExit(f"error: {error}") from None
    for one, p in zip(found, holm([one["vote"]["p"] for one in found]), strict=True):
        one["vote"]["p_holm"] = p
    made = {"code": code_version(), "hardware": hardware(), "packages": packages()}
    kept = [{key: value for key, value in one.items() if key not in ("methods", "better_model")} for one in found]
    write_json(out / "replays.json", {"header": told, "made": made, "tasks": kept})
    write_atomic(out / "index.md", page(told, found, made))
    print(json.dumps({one["name"]: {key: one[key]["target"] for key in FINDINGS} for one in found}))
    print(f"written: {out / 'index.md'}")


if __name__ == "__main__":
    main()
