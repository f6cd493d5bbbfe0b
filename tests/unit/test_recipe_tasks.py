"""Recipes with several tasks: stages that name theirs, drawn examples, mixed data stages, variables."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.pipeline.stages import Workshop


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name, n in (("sums", 12), ("votes", 20)):
        answer = {"sums": "3", "votes": "yes"}[name]
        rows = [{"id": f"{name}-{i}", "question": f"{name} {i}?", "answer": answer, "rationale": "So."} for i in range(n)]
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(*stages: dict[str, Any], **more: Any) -> Recipe:
    tasks = {
        "sums": {"task": "svamp", "data": "train=${data}/sums.jsonl,test=${data}/sums.jsonl"},
        "votes": {"task": "strategyqa", "data": "train=${data}/votes.jsonl,test=${data}/votes.jsonl"},
    }
    values = {"name": "r", "model": "scripted:replies=5", "vars": {"data": "./data"}, "tasks": tasks, "stages": list(stages)}
    Path("recipe.yaml").write_text(yaml.safe_dump(values | more))
    return load_recipe(Path("recipe.yaml"))


def run(made: Recipe) -> dict[str, Any]:
    return run_recipe(made, Path("recipe.yaml"), Path("out"), report_run)


def lines(name: str) -> list[dict[str, Any]]:
    (path,) = Path("out").glob(name)
    return [json.loads(line) for line in path.read_text().splitlines()]


WORKED = {"name": "worked", "data": {"maker": "worked_examples:n=4,prompt=(instructed:text='Think.')", "task": "votes"}}
BARE = {"name": "bare", "data": {"maker": "worked_examples:n=8,steps=false", "task": "sums"}}


def test_makers_make_rows_of_their_own_task_and_a_stage_mixes_them() -> None:
    run(recipe(WORKED, BARE, {"name": "all", "data": {"stages": ["worked", "bare"]}},
               {"name": "even", "data": {"stages": {"worked": 1, "bare": 1}}}))  # fmt: skip
    worked, bare, mixed, even = (lines(f"*-{name}/rows.jsonl") for name in ("worked", "bare", "all", "even"))
    assert [row["completion"] for row in worked] == ["So.\nAnswer: yes"] * 4
    assert all(row["prompt"][-1]["content"].startswith("Think.\n\nvotes ") for row in worked)
    assert [row["completion"] for row in bare] == ["Answer: 3"] * 8
    assert len(mixed) == 12
    assert len(even) == 8
    assert json.loads(next(Path("out").glob("*-even/counts.json")).read_text()) == {
        "worked": 4, "bare": 4, "unused of bare": 4, "rows": 8,
    }  # fmt: skip


def test_an_evaluation_draws_by_the_seed() -> None:
    stages = [{"name": f"e{seed}", "eval": {"task": "votes", "draw": 6}} for seed in (0, 1)]
    made = recipe(*stages)
    shop, other = Workshop(made, Path("out")), Workshop(made.model_copy(update={"seed": 1}), Path("out"))
    config = made.stages[0].eval
    assert config is not None
    drawn = [example.id for example in shop.tasks.examples(made.stages[0], config)]
    assert drawn == [example.id for example in shop.tasks.examples(made.stages[1], config)]
    assert drawn != [example.id for example in other.tasks.examples(made.stages[0], config)]
    assert drawn == sorted(drawn, key=lambda name: int(name.partition("-")[2]))
    assert len(set(drawn)) == 6


def test_a_stages_key_follows_its_own_task() -> None:
    def keys() -> list[str]:
        made = recipe({"name": "a", "eval": {"task": "sums"}}, {"name": "b", "eval": {"task": "votes"}})
        shop = Workshop(made, Path("out"))
        return [shop.key(stage) for stage in made.stages]

    before = keys()
    with Path("data/votes.jsonl").open("a") as file:
        file.write('{"id": "more", "question": "?", "answer": "no", "rationale": ""}\n')
    after = keys()
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize(
    ("stages", "more", "message"),
    [
        ([{"name": "a", "eval": {}}], {}, "stage 'a' has no task: name one in the stage or in the recipe"),
        ([{"name": "a", "eval": {"task": "sums", "draw": 99}}], {}, "the test split of svamp has 12 examples"),
        ([{"name": "a", "eval": {"task": "sums", "draw": 1, "limit": 1}}], {}, "give either 'limit', the first"),
        ([{"name": "a", "eval": {"task": "${tsk}"}}], {}, r"'\$\{tsk\}' names no variable of 'vars'"),
        ([{"name": "a", "eval": {"task": "sums"}}], {"vars": {"data": "./none"}}, r"no such folder: \./none; .*--set vars"),
        ([{"name": "a", "eval": {"task": "sums"}}, {"name": "b", "data": {"stages": ["a"]}}], {}, "'a' of 'stages' is not"),
        ([{"name": "b", "data": {"stages": ["a"]}}], {}, "needs 'a', which is no earlier stage"),
        ([{"name": "b", "data": {"file": "x.jsonl", "task": "sums"}}], {}, "'task' says what a maker without 'from'"),
        (
            [{"name": n, "lever": "prompting", "eval": {"task": "sums", **e}} for n, e in (("a", {}), ("b", {"limit": 5}))],
            {}, r"'a' \(12 examples\) and 'b' \(5\) are rungs of one task and answer different examples",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_said(stages: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe(*stages, **more))
    assert not list(Path("out").glob("*/ledger.jsonl"))  # before anything is answered


def test_rungs_whose_settings_differ_may_ask_the_same() -> None:
    def rung(name: str, lever: str = "prompting", **asked: Any) -> dict[str, Any]:
        return {"name": name, "lever": lever, "eval": {"task": "sums", **asked}}

    all_of_them = [rung("a"), rung("b", limit=12), rung("c", draw=12), rung("d", part="1/1")]
    elsewhere = [rung("e", "retention", limit=3), rung("f", "retention", limit=3), rung("g", task="votes", limit=3)]
    unreported = {"name": "h", "eval": {"task": "sums", "limit": 2}}
    run(recipe(*all_of_them, *elsewhere, unreported))
    assert len(list(Path("out").glob("*/ledger.jsonl"))) == 8
