"""The recipe of reference students at its smoke size, with a tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.models.load import load
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.pipeline.stages import Workshop

RECIPE = Path(__file__).parents[2] / "recipes" / "students.yaml"


def loaded(folder: Path, **more: object) -> Recipe:
    distil = f"distill:teacher={folder / 'model'},batch_size=8,lr=1e-3,dtype=float32,top_k=16,eval_share=0.2"
    sft = "sft:batch_size=16,epochs=1,lr=5e-4,dtype=float32"
    changes = {
        "model": str(folder / "model"), "dtype": "float32",
        "vars.data": str(folder), "stages.mix.data.sources": "${data}/rows.jsonl",
        "stages.teacher.train.method": sft,
        "stages.students.each": ["2", "1"],
        "stages.students.stages.cut-{each}.student": {"layers": "{each}", "hidden": 24, "heads": 2, "ff": 32},
        "stages.students.stages.distil-{each}.train.method": distil,
        "stages.students.stages.sft-{each}.train.method": sft,
        "stages.students.stages.before-{each}.eval.max_tokens": 8,
        "stages.students.stages.tuned-{each}.eval.max_tokens": 8,
        "stages.zero-shot.eval.max_tokens": 8, "stages.teacher-test.eval.max_tokens": 8,
    }  # fmt: skip
    return load_recipe(RECIPE, size="smoke", overrides={**changes, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    tiny_models.folder(folder / "model", tiny_models.llama(num_hidden_layers=3, max_position_embeddings=512))
    text = "".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(24))
    (folder / "rows.jsonl").write_text(text)
    return folder


def test_students_are_cut_distilled_and_tuned(folder: Path) -> None:
    out = folder / "run"
    report = run_recipe(loaded(folder), RECIPE, out, report_run, size="smoke")
    order = ["zero-shot", "teacher-test", "before-2", "tuned-2", "before-1", "tuned-1"]
    assert [rung["name"] for rung in report["rungs"]] == order
    assert (out / "figures" / "gain_by_size.png").is_file()
    sizes = {rung["name"]: rung["parameters"] for rung in report["rungs"]}
    assert sizes["before-1"] == sizes["tuned-1"] < sizes["before-2"] == sizes["tuned-2"] < sizes["teacher-test"]
    for layers in (2, 1):
        cut, tuned = (next(out.glob(f"??-{name}-{layers}")) / "checkpoint" for name in ("cut", "sft"))
        assert load(tuned).shape == load(cut).shape
        assert load(cut).shape.layers == layers
        assert load(cut).fingerprint != load(tuned).fingerprint
        assert json.loads((cut / "posttrain.json").read_text())["student"]["from"] == str(folder / "model")
    cost = {
        name: json.loads((next(out.glob(f"??-{name}-2")) / "DONE.json").read_text())["cost"]["flops"]
        for name in ("cut", "distil", "sft")
    }
    assert min(cost.values()) > 0
    worked = {rung["name"]: rung["fixed"]["flops"] for rung in report["rungs"]}
    assert worked["tuned-2"] == pytest.approx(sum(cost.values()))
    again = run_recipe(loaded(folder), RECIPE, out, report_run, size="smoke")
    assert [rung["accuracy"] for rung in again["rungs"]] == [rung["accuracy"] for rung in report["rungs"]]


def test_a_wrong_size_is_told_before_anything_runs(folder: Path) -> None:
    made = loaded(folder, **{"stages.students.stages.cut-{each}.student": {"size": "3m"}})
    shop = Workshop(made, folder / "none")
    with pytest.raises(ConfigError, match="unknown size '3m' of a student; did you mean '30m'"):
        [shop.versions(stage) for stage in made.stages]
    with pytest.raises(ConfigError, match="give either 'size', or 'layers'"):
        loaded(folder, **{"stages.students.stages.cut-{each}.student": {"size": "30m", "layers": 2}})


def test_the_student_stage_is_known_by_what_decides_it(folder: Path) -> None:
    made = loaded(folder)
    shop = Workshop(made, folder / "keys")
    other = loaded(folder, **{"stages.students.stages.cut-{each}.student": {"layers": "{each}", "hidden": 20}})
    assert shop.key(made.stage("cut-2")) != Workshop(other, folder / "keys").key(other.stage("cut-2"))
