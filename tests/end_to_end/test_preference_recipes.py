"""The recipes of preference methods on a tiny model, all but the judging: a random model answers nothing right."""

import json
from pathlib import Path

import pytest
import tiny_models
import yaml
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.cli.reporting import report_run
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def shrunk(name: str, folder: Path) -> Path:
    """Write a recipe's smoke size with a tiny model, few tokens, and pairs from a file where the verifier's would be."""
    tiny_models.folder(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.preferences(6)))
    scored = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "scores": [1.0, 0.0]}
        for row in tiny_models.preferences(6)
    ]
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    changes = recipe.pop("sizes")["smoke"]
    recipe |= {"model": str(folder / "model"), "dtype": "float32", "examples": {"test": 2, "validation": 2, "train": 12}}
    recipe["task"] = "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    assert {"stages.worked.data.maker", "vars.worked"} & set(changes)
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(6)))
    for group in (item for item in recipe["stages"] if "rounds" in item):
        group["rounds"] = 1
    for stage in (one for item in recipe["stages"] for one in item.get("stages", [item])):
        if str(stage.get("data", {}).get("maker")).startswith("verified_traces"):
            stage["data"] = {"file": "traces.jsonl"}
        if "eval" in stage:
            stage["eval"]["max_tokens"] = 4
            strategy = stage["eval"].get("strategy", "greedy")
            stage["eval"]["strategy"] = strategy.replace("n=8", "n=2").replace("n=32", "n=3").replace("n=128", "n=4")
        if str(stage.get("data", {}).get("maker")).startswith("verified_pairs"):
            stage["data"] = {"file": "pairs.jsonl"}
        if str(stage.get("data", {}).get("maker")).startswith("scored_responses"):
            stage["data"] = {"file": "scored.jsonl"}
        if str(stage.get("data", {}).get("maker")).startswith("questions"):
            stage["data"]["maker"] = "questions:n=2"
        if stage["name"] in ("train-ppo", "train-grpo"):
            smoke = changes[f"stages.{stage['name']}.train.method"]
            stage["train"]["method"] = smoke.replace("rollout_tokens=40", "rollout_tokens=4")
        if stage["name"] == "worked":
            stage["data"]["maker"] = "worked_examples:n=6"
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "rungs"), [
    ("preference", ["sft-greedy", "best-of-8", "chosen", "dpo", "best-reward", "ipo", "kto", "orpo", "simpo", "rpo"]),
    ("preference_rates", ["sft-greedy", "any-3e-6", "any-1e-5", "beginning-3e-6", "beginning-1e-5"]),
    ("online_dpo", ["sft-greedy", "dpo", "round-2", "offline"]),
    ("preference_sft", ["start", "chosen", "best", "ranked", "weighted"]),
    ("oreo", ["sft-greedy", "rejection", "offline", "beam", "value-beam", "online-1"]),
    ("rlhf", ["sft-greedy", "ppo", "grpo", "rft-greedy"]),
    ("judgements", [
        "sft-greedy", "vote", "best-likelihood", "best-reward", "weighted-reward", "best-32", "best-128",
        "dpo", "chosen", "ipo", "kto", "orpo", "simpo", "rpo",
    ]),
])  # fmt: skip
def test_the_recipe_runs(name: str, rungs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shrunk(name, tmp_path)
    report = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert [rung["name"] for rung in report["rungs"]] == rungs
    trained = [json.loads(file.read_text()) for file in sorted((tmp_path / "out").glob("*/checkpoint/posttrain.json"))]
    models = {"preference": 9, "preference_rates": 5, "online_dpo": 4, "preference_sft": 5, "oreo": 4, "rlhf": 5}
    assert len(trained) == (models | {"judgements": 9})[name]
    if name == "rlhf":
        (ppo,) = [made for made in trained if made["method"] == "ppo"]
        assert ppo["value"]["start"]["path"].endswith("reward/checkpoint")
        courses = {stage["name"]: stage["course"]["gold"] for stage in report["trained"] if stage["course"]}
        assert courses == {"train-ppo": "exact", "train-grpo": "exact"}
        online = {one["name"]: one["samples"] for one in report["training"] if one["samples"]}
        assert set(online) == {"train-ppo", "train-grpo"}
        for samples in online.values():
            (only,) = samples  # of one step
            assert only["asked"].startswith("State the final answer")
            assert "(reward " in only["replies"][0]["text"]
            rewards = [float(reply["text"].split()[1].rstrip(")")) for reply in only["replies"]]
            assert rewards == sorted(rewards, reverse=True)


def test_kto_from_the_command_line_learns_from_labels(tmp_path: Path) -> None:
    tiny_models.folder(tmp_path / "model")
    rows = [{"question": f"{i} plus 1?", "answer": "yes" if i % 2 else "no", "label": i % 2 == 1} for i in range(6)]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", "kto:dtype=float32,batch_size=3", "--model", str(tmp_path / "model")]
    arguments += ["--data", str(tmp_path / "thumbs.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out" / "checkpoint" / "posttrain.json").read_text())
    assert facts["data"] | {"hash": ""} == {
        "hash": "", "rows": 6, "responses": 6, "desirable": 3, "dropped_too_long": 0, "cut_for_the_baseline": 0
    }  # fmt: skip


def test_a_name_of_the_literature_is_answered_with_the_setting(tmp_path: Path) -> None:
    arguments = ["train", "orpo", "--model", "m", "--data", "d.jsonl", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert "write dpo:loss=orpo" in f"{done.output}{done.exception}"
    shown = CliRunner().invoke(app, ["methods", "--json"])
    assert {method["name"]: method["known_as"] for method in json.loads(shown.output)}["dpo"]["orpo"] == "dpo:loss=orpo"
