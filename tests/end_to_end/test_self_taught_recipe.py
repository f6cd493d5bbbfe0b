"""The recipe of self-taught rounds at its smoke size, on a tiny model and a task where luck is often right."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import DataError
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "self_taught.yaml"
SIZES = {"train": 16, "validation": 16, "test": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self-taught")
    tiny_models.folder(folder / "model")
    for split, n in SIZES.items():
        rows = [{"question": f"{split} {i}?", "answer": str(i % 2), "why": f"So.\nAnswer: {i % 2}"} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {split: f"{split}.jsonl" for split in SIZES}
    task = {"name": "luck", "splits": splits, "rationale": "why", "extract": "number", "grade": "number", "instruction": ""}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def loaded(place: Path, **more: Any) -> Recipe:
    start = "sft:batch_size=8,epochs=30,lr=2e-2,save_every=0,dtype=float32"
    changes = {
        "model": str(place / "model"), "task": str(place / "task.yaml"), "examples": {}, "dtype": "float32",
        "stages.tuned-0.train.method": start,
        "stages.star.stages.tuned-{round}.train.method": start.replace("epochs=30", "epochs=10"),
        **{f"stages.star.stages.{name}-{{round}}.eval.max_tokens": 16 for name in ("sample", "test")},
    }  # fmt: skip
    return load_recipe(RECIPE, size="smoke", overrides={**changes, **more})


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    (folder,) = out.glob(f"??-{stage}")
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, dict[str, Any]]:
    out = place / "run"
    return out, run_recipe(loaded(place), RECIPE, out, report_run, size="smoke")


def test_every_round_asks_new_questions_and_keeps_what_was_right_before(run: tuple[Path, dict[str, Any]]) -> None:
    out, report = run
    assert [rung["name"] for rung in report["rungs"]] == ["zero-shot", "test-0", "test-1", "test-2"]
    asked = [
        {json.loads(line)["example"] for line in (folder / "ledger.jsonl").read_text().splitlines()}
        for folder in sorted(out.glob("??-sample-?"))
    ]
    assert [len(found) for found in asked] == [8, 8]
    assert not asked[0] & asked[1]
    sets = [rows(out, f"traces-{i}") for i in range(3)]
    assert len(sets[0]) == 16
    for earlier, later in pairwise(sets):
        assert later[: len(earlier)] == earlier
        assert len(later) > len(earlier)
    assert all(row["prompt"][0]["content"].startswith("train ") for row in sets[2][16:])
    counts = json.loads(next(out.glob("??-traces-2")).joinpath("counts.json").read_text())
    assert counts["earlier"] == len(sets[1])
    assert counts["rows"] == len(sets[2]) == counts["earlier"] + counts["new"] - counts["there_already"]


def test_every_round_trains_the_model_that_the_recipe_began_with(place: Path, run: tuple[Path, dict[str, Any]]) -> None:
    for i in range(3):
        told = json.loads(next(run[0].glob(f"??-tuned-{i}")).joinpath("checkpoint", "posttrain.json").read_text())
        assert told["start"]["path"] == str(place / "model")


def test_costs_add_up_over_the_rounds(run: tuple[Path, dict[str, Any]]) -> None:
    rungs = {rung["name"]: rung for rung in run[1]["rungs"]}
    flops = [rungs[f"test-{i}"]["fixed"]["flops"] for i in range(3)]
    assert 0 < flops[0] < flops[1] < flops[2]


def test_a_round_without_a_right_trace_is_one_sentence(place: Path) -> None:
    wrong = [{"question": f"train {i}?", "answer": "7", "why": ""} for i in range(16)]
    lost = place / "lost"
    lost.mkdir()
    for split in SIZES:
        (lost / f"{split}.jsonl").write_text((place / f"{split}.jsonl").read_text())
    (lost / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    (lost / "task.yaml").write_text((place / "task.yaml").read_text())
    with pytest.raises(
        DataError, match=r"stage 'traces-1': verified_traces: no rows: of 64 replies to 8 questions .* sample more"
    ):
        run_recipe(loaded(place, task=str(lost / "task.yaml")), RECIPE, place / "lost-run", report_run)
