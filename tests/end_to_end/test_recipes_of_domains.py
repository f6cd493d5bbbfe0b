"""The recipes for instruction tuning, domains, dialogues and worked against bare answers: a tiny model, made-up rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from posttrain.cli.reporting import report_run
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CHOICES = ["A)1", "B)2", "C)3", "D)4"]
SMALL = {"dtype": "float32", "slots": 16}


def rows_of(name: str) -> list[dict[str, Any]]:
    """Rows of the shapes of the published files, short enough for a model that reads bytes."""
    ids = range(24)
    if name == "self_dialogue_subset":
        return [
            {"messages": [{"role": ("user", "assistant")[j % 2], "content": f"{i} {j}?"} for j in range(4)]} for i in ids
        ]
    if name == "self_instruct_seed":
        return [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in ids]
    if name == "ifeval":
        return [{"id": i, "instruction": f"{i}, no comma", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
                for i in ids]  # fmt: skip
    row: dict[str, Any] = {"answer": "3", "rationale": "1 + 2 = 3"}
    if name.startswith(("mmlu", "aqua")):
        row |= {"choices": CHOICES, "answer": "C"}
    if name in ("strategyqa_train", "pubmedqa_labeled"):
        row |= {"answer": "yes", "context": ["So."]}
    if name == "bbh":
        row |= {"answer": "True", "task": "navigate"}
    return [{"id": f"{name}-{i}", "question": f"{i}?", "split": ("train", "test")[i % 2], **row} for i in ids]


FILES = (
    "mawps_multiarith mawps_addsub svamp gsm8k_train aqua_dev strategyqa_train pubmedqa_labeled bbh mmlu_test ifeval "
    "self_instruct_seed self_dialogue_subset"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("domains")
    tiny_models.folder(made / "model", tiny_models.llama(max_position_embeddings=512))
    for name in FILES.split():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)))
    return made


def run(name: str, folder: Path, out: Path, *, data: bool = True, **changes: Any) -> dict[str, Any]:
    path = RECIPES / f"{name}.yaml"
    given = {"model": str(folder / "model"), **SMALL, **({"vars.data": str(folder)} if data else {}), **changes}
    recipe = load_recipe(path, size="smoke", overrides=given)
    for stage in recipe.stages:
        if stage.eval is not None:  # a random model writes until it is stopped
            stage.eval.__dict__["max_tokens"] = 4
    return run_recipe(recipe, path, out, report_run, size="smoke")


def test_instruction_tuning(folder: Path, tmp_path: Path) -> None:
    distil = "distill:teacher=" + str(folder / "model") + ",batch_size=8,eval_share=0.1,eval_start=true"
    students = {
        "stages.sizes.each": ["1"],
        "stages.sizes.stages.cut-{each}.student": {"layers": "{each}", "hidden": 24, "heads": 2, "ff": 32},
        "stages.sizes.stages.distil-{each}.train.method": distil,
    }
    report = run("instruction_tuning", folder, tmp_path, **students)
    tables = [report, *report["others"]]
    assert [table["task"] for table in tables] == ["pubmedqa", "bbh", "mmlu", "ifeval", "mawps"]
    for table in tables:
        pairs = {rung["name"]: rung["difference"]["against"] for rung in table["rungs"] if rung["name"].endswith("-tuned")}
        before = {name: name.removesuffix("-tuned") for name in pairs} | {"ifeval-tuned": "ifeval-start"}
        assert pairs
        assert all(against == before[name] for name, against in pairs.items())
    assert "prompt-level loose" in report["others"][2]["rungs"][0]["measures"]
    rows = [json.loads(line) for line in next(tmp_path.glob("*-mix/rows.jsonl")).read_text().splitlines()]
    asked = [row["prompt"][0]["content"] for row in rows]
    assert len(rows) == 7 * 8
    assert sum(text.startswith("Give the answer at once") for text in asked) == 4 * 8
    assert {row["completion"] for row in rows if "at once" in row["prompt"][0]["content"]} == {
        "Answer: 3", "Answer: C", "Answer: yes",
    }  # fmt: skip
    assert [made["name"] for made in report["training"]] == ["sft", "distil-1", "sft-1"]
    assert all(made["held_out"]["start_loss"] > 0 for made in report["training"])


def test_domain_with_and_without_replay(folder: Path, tmp_path: Path) -> None:
    report = run("domain", folder, tmp_path)
    assert [rung["name"] for rung in report["rungs"]] == ["start", "tuned", "tuned-replay"]
    kept = report["retention"]
    assert [task["task"] for task in kept["tasks"]] == ["svamp", "mmlu", "strategyqa"]
    assert [change["model"] for change in kept["tasks"][0]["after"]] == ["domain-only", "with-replay"]
    assert [found["model"] for found in kept["forgetting"]] == ["domain-only", "with-replay"]
    assert [(found["label"], found["replies"]) for found in kept["diversity"]] == [
        ("start", 4), ("domain-only", 4), ("with-replay", 4),
    ]  # fmt: skip
    rows = [json.loads(line) for line in next(tmp_path.glob("*-replayed/rows.jsonl")).read_text().splitlines()]
    assert sum(row["prompt"][0]["content"].startswith("Say ") for row in rows) == 3
    trained = {row["prompt"][0]["content"] for row in rows}
    asked = json.loads(next(tmp_path.glob("*-start/ledger.jsonl")).read_text().splitlines()[0])["example"]
    assert int(asked.rpartition("-")[2]) % 2 == 1  # marked test
    assert not any(f"Question: {asked.rpartition('-')[2]}?" in text for text in trained)


def test_worked_against_bare_answers(folder: Path, tmp_path: Path) -> None:
    changes = {
        "stages.bare.data.maker": "worked_examples:n=8,steps=false",
        "stages.worked.data.maker": "worked_examples:n=8",
    }
    report = run("cot_vs_direct", folder, tmp_path, data=False, examples={"test": 4, "train": 16}, **changes)
    assert [rung["name"] for rung in report["rungs"]] == ["zero-shot", "direct", "steps"]
    bare, worked = ([json.loads(line) for line in next(tmp_path.glob(f"*-{name}/rows.jsonl")).read_text().splitlines()]
                    for name in ("bare", "worked"))  # fmt: skip
    assert [row["id"] for row in bare] == [row["id"] for row in worked]
    assert all(row["completion"].startswith("Answer: ") for row in bare)


def test_dialogues(folder: Path, tmp_path: Path) -> None:
    report = run("dialogue", folder, tmp_path)
    assert report["rungs"] == []
    (trained,) = report["training"]
    held_out = trained["held_out"]
    assert held_out["rows"] >= 2
    assert f"{held_out['start_loss']:.3f}" in trained["sentence"]
    assert [loss["step"] for loss in trained["losses"]] == [1, 2]
    assert [reply["step"] for reply in trained["samples"][0]["replies"]] == [0, 2]
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Held-out rows and replies" in text
        assert "before training" in text
