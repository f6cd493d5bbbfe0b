"""A data stage with a labeller: what it is shown, what it costs, what is kept after a kill, what changes its key."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.pipeline.stages import Workshop
from posttrain.preference.ai_feedback import AiFeedback

TASK = {"name": "digits", "splits": {"train": "train.jsonl", "test": "test.jsonl"}, "extract": "number", "grade": "number"}
SAMPLES = {"name": "samples", "eval": {"split": "train", "strategy": "sample:n=4", "max_tokens": 32}}
OTHERS = {"name": "others", "eval": {**SAMPLES["eval"], "teacher": "scripted:replies=9"}}  # type: ignore[dict-item]
NO_PAIRS = {"share": None, "ci95": None, "pairs": 0, "p": None}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(yaml.safe_dump(TASK))
    for name, n in (("train", 8), ("test", 2)):
        rows = [{"question": f"{name} {i}?", "answer": str(i % 3)} for i in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(*stages: dict[str, Any]) -> Recipe:
    first = {"name": "zero-shot", "lever": "prompting", "eval": {}}
    values = {"name": "labels", "model": "scripted:replies=5", "task": "task.yaml", "stages": [first, *stages]}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(Path("recipe.yaml"))


def run(made: Recipe, out: str = "out") -> Path:
    run_recipe(made, Path("recipe.yaml"), Path(out), report_run)
    (folder,) = Path(out).glob("??-labels")
    return folder


def labels(**data: Any) -> dict[str, Any]:
    return {"name": "labels", "data": {"maker": "ai_feedback", "from": "samples", **data}}


def test_labels_their_cost_and_the_figures_on_the_labeller() -> None:
    folder = run(recipe(SAMPLES, labels(labeller="scripted:replies=2")))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert all(row["preference"] == 0.5 and row["tie"] for row in rows)  # the script finds both labels alike
    found = json.loads((folder / "facts.json").read_text())
    assert found["labeller"]["read"] == ["logprobs"]
    assert found["labeller"]["position"]["flip_rate"] == 0.0
    assert found["labeller"]["self"]["measured"] is False
    ledger = load_ledger(folder)
    assert len(ledger.rows) == 8
    assert {role for row in ledger.rows for role in row.cost} == {"judge"}
    assert all(row.model == "scripted" and row.strategy == "ai_feedback" for row in ledger.rows)
    done = json.loads((folder / "DONE.json").read_text())
    assert done["cost"]["usage"]["scored"] == sum(row.cold().usage.scored for row in ledger.rows) == 4 * len(rows)
    report = Path("out/report.md").read_text()
    assert "position: 0.0% of the pairs" in report
    assert "its own hand: not measured, for every response is by another model" in report


def test_the_labeller_is_shown_nothing_that_tells_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    ask = AiFeedback.ask

    async def spying(self: Any, task: Any, prompter: Any, item: Any, engine: Any, *, seed: int) -> Any:
        seen.append(item)
        return await ask(self, task, prompter, item, engine, seed=seed)

    monkeypatch.setattr(AiFeedback, "ask", spying)
    run(recipe(SAMPLES, labels()))
    assert len(seen) == 8
    assert all(item.scores == () and item.example.answer is None and not item.example.gold for item in seen)


def test_a_killed_stage_asks_only_what_is_left_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(recipe(SAMPLES, labels()), "whole")
    asked: list[str] = []
    ask = AiFeedback.ask

    async def failing(self: Any, task: Any, prompter: Any, item: Any, engine: Any, *, seed: int) -> Any:
        if len(asked) == 3:
            await asyncio.sleep(0.2)  # the three are written down meanwhile
            raise KeyboardInterrupt
        asked.append(item.example.id)
        return await ask(self, task, prompter, item, engine, seed=seed)

    monkeypatch.setattr(AiFeedback, "ask", failing)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(SAMPLES, labels()))
    (folder,) = Path("out").glob("??-labels")
    finished = {row.example for row in load_ledger(folder).rows}
    assert finished
    again: list[str] = []

    async def noting(self: Any, task: Any, prompter: Any, item: Any, engine: Any, *, seed: int) -> Any:
        again.append(item.example.id)
        return await ask(self, task, prompter, item, engine, seed=seed)

    monkeypatch.setattr(AiFeedback, "ask", noting)
    run(recipe(SAMPLES, labels()))
    assert len(again) == 8 - len(finished)
    assert not finished & set(again)
    for name in ("rows.jsonl", "facts.json", "counts.json", "ledger.jsonl"):
        assert (folder / name).read_text() == (whole / name).read_text(), name


def test_responses_of_another_model_beside_tell_of_the_labellers_own_hand() -> None:
    folder = run(recipe(SAMPLES, OTHERS, labels(beside="others", labeller="scripted:replies=9", maker="ai_feedback:tie=0")))
    found = json.loads((folder / "facts.json").read_text())["labeller"]
    assert found["self"] == {"measured": True, **dict.fromkeys(("own_preferred", "equal_grades"), NO_PAIRS)}  # all ties
    said = [row.trace["pairs"] for row in load_ledger(folder).rows]
    assert all((pair["a"] < 4) != (pair["b"] < 4) for pairs in said for pair in pairs)
    other = {"name": "others", "eval": {**OTHERS["eval"], "split": "test"}}  # type: ignore[dict-item]
    made = recipe(SAMPLES, other, labels(beside="others"))
    with pytest.raises(ConfigError, match="no question in common"):
        run(made, "again")


def test_what_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*stages: dict[str, Any]) -> str:
        made = recipe(SAMPLES, *stages)
        shop = Workshop(made, Path("out"))
        for stage in made.stages[:-1]:
            shop.done[stage.name] = type("D", (), {"key": f"key of {stage.name}"})()  # type: ignore[assignment]
        return shop.key(made.stages[-1])

    Path("principles.txt").write_text("Be kind.\n")
    plain = key(labels())
    assert key(labels()) == plain
    assert key(labels(labeller="scripted:replies=2")) != plain
    by_file = labels(maker="ai_feedback:principles=principles.txt")
    first = key(by_file)
    Path("principles.txt").write_text("Be brief.\n")
    assert key(by_file) != first


@pytest.mark.parametrize(("stages", "message"), [
    ([labels(labeller="stage:nowhere")], "needs 'nowhere', which is no earlier stage"),
    ([labels(labeller="stage:samples")], "labeller 'samples' is not a training stage"),
    ([labels(beside="zero-shot"), {"name": "x", "data": {"maker": "verified_pairs", "from": "samples", "beside": "labels"}}],
     "beside 'labels' is not an evaluation"),
    ([{"name": "x", "data": {"file": "train.jsonl", "labeller": "m"}}], "'labeller' belongs to a 'maker' with 'from'"),
])  # fmt: skip
def test_a_wrong_recipe_is_said_at_once(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(SAMPLES, *stages)


@pytest.mark.parametrize(("data", "message"), [
    ({"maker": "verified_pairs", "from": "samples", "labeller": "scripted"}, "asks no labeller: leave 'labeller' out"),
    ({"maker": "ai_feedback"}, "'from' must name the evaluation whose responses are judged"),
    ({"maker": "ai_feedback", "from": "mix"}, "'from' must name an earlier evaluation stage"),
])  # fmt: skip
def test_a_maker_and_its_labeller_must_fit(data: dict[str, Any], message: str) -> None:
    mix = {"name": "mix", "data": {"file": "train.jsonl"}}
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe(SAMPLES, mix, {"name": "labels", "data": data}), Path("recipe.yaml"), Path("out"), report_run)
