"""Data stages of a recipe: sources, makers on evaluations and on other data stages, what changes a key and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError, DataError
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.pipeline.stages import Workshop

EVALUATION = {"name": "samples", "eval": {"split": "train", "strategy": "sample:n=8", "max_tokens": 32}}
TASK = {"name": "digits", "splits": {"train": "train.jsonl", "test": "test.jsonl"}, "extract": "number", "grade": "number"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(yaml.safe_dump(TASK))
    for name, n in (("train", 8), ("test", 2), ("general", 40)):
        rows = [{"question": f"{name} {i}?", "answer": str(i % 3)} for i in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(*stages: dict[str, Any], **more: Any) -> Recipe:
    first = {"name": "zero-shot", "lever": "prompting", "eval": {}}
    values = {"name": "data", "model": "scripted:replies=3", "task": "task.yaml", "stages": [first, *stages], **more}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(Path("recipe.yaml"))


def rows_of(made: Recipe, stage: str) -> list[dict[str, Any]]:
    run_recipe(made, Path("recipe.yaml"), Path("out"), report_run)
    (folder,) = Path("out").glob(f"??-{stage}")
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("folder")
def test_traces_then_a_mix_with_general_rows() -> None:
    made = recipe(
        EVALUATION,
        {"name": "traces", "data": {"maker": "verified_traces:per_question=1", "from": "samples"}},
        {"name": "mix", "data": {"maker": "mixed:general=general.jsonl,share=0.5", "from": "traces"}},
    )
    rows = rows_of(made, "mix")
    general = [row for row in rows if row["prompt"][0]["content"].startswith("general")]
    assert len(general) == len(rows) / 2 > 0
    traces = [row for row in rows if row not in general]
    assert all(row["prompt"][0]["content"].startswith("train ") for row in traces)
    assert all("Answer: " in row["completion"] for row in traces)
    assert "per question" not in Path("out/report.md").read_text()
    assert "Data of 'mix':" in Path("out/report.md").read_text()


@pytest.mark.usefixtures("folder")
def test_a_teacher_answers_and_the_students_rows_hold_its_replies() -> None:
    made = recipe(
        {"name": "taught", "eval": {"teacher": "scripted:replies=1", "split": "train", "max_tokens": 32}},
        {"name": "rows", "data": {"maker": "distilled", "from": "taught"}},
    )
    rows = rows_of(made, "rows")
    assert len(rows) == 8
    assert {row["completion"] for row in rows} == {"I think so.\nAnswer: 0"}
    ledger = [json.loads(line) for line in Path("out/02-taught/ledger.jsonl").read_text().splitlines()]
    assert {row["model"] for row in ledger} == {"scripted"}


@pytest.mark.usefixtures("folder")
def test_several_sources_in_one_stage() -> None:
    made = recipe({"name": "rows", "data": {"sources": ["train.jsonl*1", {"data": "general.jsonl", "weight": 3}]}})
    rows = rows_of(made, "rows")
    assert len(rows) == 8 + 24
    counts = json.loads(Path("out/02-rows/counts.json").read_text())
    assert counts == {"train.jsonl": 8, "general.jsonl": 24, "unused of general.jsonl": 16, "rows": 32}
    assert rows_of(recipe({"name": "rows", "data": {"sources": "train.jsonl*1,general.jsonl*3"}}), "rows") == rows


def key(made: Recipe, name: str) -> str:
    shop = Workshop(made, Path("out"))
    return shop.key(made.stage(name))


@pytest.mark.usefixtures("folder")
def test_the_key_follows_the_content_that_is_read() -> None:
    def mixed() -> str:
        return key(recipe({"name": "m", "data": {"maker": "mixed:general=general.jsonl,domain=train.jsonl"}}), "m")

    def sources() -> str:
        return key(recipe({"name": "s", "data": {"sources": "train.jsonl,general.jsonl"}}), "s")

    def taught(teacher: str) -> str:
        return key(recipe({"name": "t", "eval": {"teacher": teacher}}), "t")

    before = mixed(), sources()
    assert (mixed(), sources()) == before
    Path("general.jsonl").write_text('{"question": "another", "answer": "1"}\n' * 40)
    assert mixed() != before[0]
    assert sources() != before[1]
    assert taught("scripted:replies=2") != taught("scripted:replies=3")


@pytest.mark.usefixtures("folder")
def test_keys_of_finished_runs_stay_as_they_were() -> None:
    """The keys that these stages had before there were teachers and mixed sources; of worked_examples, since version 2."""
    made = recipe(EVALUATION, {"name": "worked", "data": {"maker": "worked_examples:n=4,steps=false"}},
                  {"name": "read", "data": {"file": "train.jsonl"}})  # fmt: skip
    assert [key(made, name) for name in ("samples", "worked", "read")] == [
        "2dc1548f1ab4f001",
        "5e1b533fa0f0b9f0",
        "2b91030274c17695",
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [{"name": "d", "data": {"file": "train.jsonl", "sources": "train.jsonl"}}],
            "exactly one of 'maker', 'file', 'sources' and",
        ),
        ([{"name": "d", "data": {"sources": ["a.jsonl*2"]}}], "a weight says nothing of a single source"),
        ([{"name": "d", "data": {"maker": "mixed:general=g.jsonl"}}], "name the domain's rows once"),
        ([{"name": "d", "data": {"maker": "mixed:share=0.1"}}], "name the rows to rehearse"),
        (
            [EVALUATION, {"name": "d", "data": {"maker": "mixed:general=g.jsonl", "from": "samples"}}],
            "stage 'd': mixed:general=g.jsonl: 'from' must name an earlier data stage",
        ),
        (
            [
                {"name": "r", "data": {"file": "train.jsonl"}},
                {"name": "d", "data": {"maker": "verified_traces", "from": "r"}},
            ],
            "'from' must name an earlier evaluation stage",
        ),
        (
            [EVALUATION, {"name": "d", "data": {"maker": "distilled:prompt=zero_shott", "from": "samples"}}],
            "did you mean 'zero_shot'",
        ),
        (
            [
                {"name": "r", "data": {"file": "train.jsonl"}},
                {"name": "s", "train": {"method": "sft", "data": "r"}},
                {"name": "e", "model": "s", "eval": {"teacher": "scripted"}},
            ],
            "give either 'model', an earlier stage, or 'teacher'",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_stage_is_said_before_anything_runs(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run_recipe(recipe(*stages), Path("recipe.yaml"), Path("out"), report_run)
    assert not list(Path("out").glob("0?-*"))
