"""Distillation and SFT on judged responses from the command line and in a recipe."""

import json
from pathlib import Path

import pytest
import tiny_models
import yaml
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, DataError
from posttrain.data.rows import rows_for, rows_with_scores
from posttrain.models.load import fingerprint_of
from posttrain.pipeline.making import read_sources
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.stages import Workshop

RUNNER = CliRunner()
SCORED = [{"prompt": f"{i} plus 1?", "responses": ["yes", f"It is {i + 1}"], "scores": [0.0, 1.0]} for i in range(6)]


def train(method: str, model: Path, rows: list[dict], out: Path) -> dict:
    data = out.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", method, "--model", str(model), "--data", str(data), "--out", str(out), "--json"]
    done = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.folder(folder / "student")
    tiny_models.folder(folder / "teacher", tiny_models.llama(hidden_size=48), seed=5)
    return folder


def test_distill_from_the_command_line_again_skips(models: Path, tmp_path: Path) -> None:
    method = f"distill:teacher={models / 'teacher'},divergence=js,beta=0.3,top_k=8,dtype=float32,lr=1e-3"
    made = train(method, models / "student", tiny_models.demonstrations(6), tmp_path / "out")
    facts = json.loads((Path(made["checkpoint"]) / "posttrain.json").read_text())
    assert facts["method"] == "distill"
    assert facts["data"]["teacher"]["fingerprint"] == fingerprint_of(models / "teacher")
    assert train(method, models / "student", tiny_models.demonstrations(6), tmp_path / "out") == made


@pytest.mark.parametrize("mode", ["best", "filtered:threshold=0.5", "weighted:beta=0.5", "chosen:margin=sigmoid"])
def test_preference_sft_from_the_command_line(mode: str, models: Path, tmp_path: Path) -> None:
    name, _, more = mode.partition(":")
    rows = tiny_models.preferences(6) if name == "chosen" else SCORED
    method = f"preference_sft:mode={name},dtype=float32,adapter=lora,rank=2" + (f",{more}" if more else "")
    made = train(method, models / "student", rows, tmp_path / "out")
    facts = json.loads((Path(made["checkpoint"]) / "posttrain.json").read_text())
    assert facts["data"].get("responses") == (None if name == "chosen" else 12)
    assert (Path(made["checkpoint"]) / "adapter_model.safetensors").is_file()


def test_preference_sft_learns_from_a_mix_of_scored_files(models: Path, tmp_path: Path) -> None:
    for name, rows in (("a", SCORED[:3]), ("b", SCORED[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    arguments = ["train", "preference_sft:mode=best,dtype=float32", "--model", str(models / "student"), "--data", mix]
    done = RUNNER.invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"] == 6
    assert read_sources(mix, seed=0).counts["rows"] == 6
    assert all(len(row["scores"]) == 2 for row in read_sources(mix, seed=0).rows)


def test_scores_are_kept_for_those_that_read_them_only() -> None:
    class Reads:
        scored = True

    row = {"question": "a?", "answer": "b", "score": 2}
    prompt = [{"role": "user", "content": "a?"}]
    assert rows_for(Reads(), [row], "file") == [{"prompt": prompt, "completion": "b", "score": 2}]
    assert rows_for(object(), [row], "file") == [{"prompt": prompt, "completion": "b"}]
    assert rows_with_scores(SCORED, "file") == SCORED
    with pytest.raises(DataError, match="file, row 2: no 'responses' and 'scores', which other rows have"):
        rows_with_scores([SCORED[0], row], "file")


RECIPE = {
    "name": "kinds",
    "task": "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "dtype": "float32",
    "examples": {"test": 2, "train": 6},
    "stages": [
        {"name": "worked", "data": {"maker": "worked_examples:n=6"}},
        {"name": "big", "train": {"method": "sft:lr=1e-3,dtype=float32", "data": "worked"}},
        {
            "name": "small",
            "train": {"method": "distill:lr=1e-3,dtype=float32", "data": "worked", "eval_data": "worked", "teacher": "big"},
        },
        {"name": "judged", "data": {"file": "scored.jsonl"}},
        {
            "name": "weighted",
            "model": "small",
            "train": {"method": "preference_sft:mode=weighted,dtype=float32", "data": "judged", "eval_data": "judged"},
        },
        {"name": "asked", "model": "weighted", "lever": "fine-tuning", "eval": {"max_tokens": 4}},
    ],
}


def recipe(folder: Path, models: Path, change: dict[str, object] | None = None) -> Path:
    made = json.loads(json.dumps(RECIPE)) | {"model": str(models / "student")}
    for key, value in (change or {}).items():
        made["stages"][2]["train"][key] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SCORED))
    return path


def test_both_are_stages_and_an_earlier_stage_is_a_teacher(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, models)
    done = RUNNER.invoke(app, ["run", "recipe.yaml", "--out", "out"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    facts = json.loads((out / "03-small" / "checkpoint" / "posttrain.json").read_text())
    assert facts["data"]["teacher"]["fingerprint"] == fingerprint_of(out / "02-big" / "checkpoint")
    assert facts["evaluation"]["rows"] == facts["evaluation"]["also_trained"] == 6
    judged = json.loads((out / "05-weighted" / "checkpoint" / "posttrain.json").read_text())
    assert (judged["data"]["responses"], judged["evaluation"]["rows"]) == (24, 6)  # scores reach the held-out rows too
    costs = {f.name[3:]: json.loads((f / "DONE.json").read_text())["cost"]["flops"] for f in out.glob("0*-*")}
    rung = json.loads((out / "report.json").read_text())["rungs"][0]
    assert rung["fixed"]["flops"] == pytest.approx(costs["big"] + costs["small"] + costs["weighted"])
    again = RUNNER.invoke(app, ["run", "recipe.yaml", "--out", "out"], catch_exceptions=False)
    assert "0 stages run, 6 skipped" in again.output.replace("\n", " ")


def workshop_of(path: Path, tmp_path: Path) -> Workshop:
    workshop = Workshop(load_recipe(path), tmp_path / "out")
    workshop.done = {"worked": type("Done", (), {"key": "w"})()}  # type: ignore[dict-item]
    return workshop


def test_a_stages_key_follows_the_teachers_content(models: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tiny_models.folder(tmp_path / "other", tiny_models.llama(hidden_size=48), seed=6)
    workshop = workshop_of(recipe(tmp_path, models, {"teacher": None, "method": f"distill:teacher={link}"}), tmp_path)
    keys = []
    for target in (models / "teacher", other, models / "teacher"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        keys.append(workshop.key(workshop.recipe.stage("small")))
    assert keys[0] == keys[2] != keys[1]


def test_a_stage_without_a_teacher_keeps_the_key_that_it_had(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop, seen = workshop_of(recipe(tmp_path, models), tmp_path), []
    dumps = json.dumps
    monkeypatch.setattr(
        "posttrain.pipeline.stages.json.dumps", lambda facts, **how: seen.append(facts) or dumps(facts, **how)
    )
    workshop.key(workshop.recipe.stage("big"))
    assert seen[-1]["config"]["train"] == {"method": "sft:lr=1e-3,dtype=float32", "data": "worked"}
    assert seen[-1].keys() == {"config", "inputs", "seed", "task", "model", "numbers", "versions"}


def versions(path: Path, tmp_path: Path) -> list[str]:
    loaded = load_recipe(path)
    return Workshop(loaded, tmp_path / "out").versions(loaded.stage("small"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sft", "teacher": "big"}, "sft: learns from no teacher"),
        ({"method": "distill:teacher=x", "teacher": "big"}, "distill:teacher=x: has a teacher of its own"),
        ({"teacher": "worked"}, "teacher 'worked' is not a training stage"),
        ({"teacher": "bog"}, "needs 'bog', which is no earlier stage"),
    ],
)
def test_a_wrong_teacher_is_said_before_anything_runs(change: dict, message: str, models: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, models, change)
    with pytest.raises(ConfigError, match=message):
        versions(path, tmp_path)
