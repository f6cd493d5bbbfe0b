"""The recipes of online RL on a tiny model, all but the judging: a random model answers nothing right."""

import json
import re
from pathlib import Path

import pytest
import tiny_models
import yaml
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.cli.reporting import report_run
from posttrain.core.specs import parse
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
RULE = "rule:parses=false,steps=false,regex='[!-~]'"


def shrunk(name: str, folder: Path) -> Path:
    """Write a recipe's smoke size with a tiny model, few tokens, a reward that differs, and traces from a file."""
    tiny_models.ending_folder(folder / "model")
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(6)))
    requests = [{"id": f"{i}", "instruction": f"Say {i}.", "input": "", "output": "x" * (i + 1)} for i in range(12)]
    for file in ("self_instruct_seed", "self_instruct_user_oriented"):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe |= {"model": str(folder / "model"), "dtype": "float32", "examples": {"test": 2, "validation": 4, "train": 12}}
    recipe["task"] = "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    recipe["vars"] = {**recipe.get("vars", {}), "data": str(folder)}
    recipe["vars"] |= {"form": "instructed:text='Think.'", "worked": 6}
    if "rl" in recipe["vars"]:
        recipe["vars"]["rl"] = "group=4,batch_size=2,lr=1e-3,rollout_tokens=4"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.preferences(6)))
    for stage in (one for item in recipe["stages"] for one in item.get("stages", [item])):
        maker = str(stage.get("data", {}).get("maker"))
        if "eval" in stage:
            stage["eval"] |= {"max_tokens": 4, **({"limit": 4} if "limit" in stage["eval"] else {})}
            for count in ("n=8", "n=4"):
                stage["eval"]["strategy"] = stage["eval"].get("strategy", "greedy").replace(count, "n=2")
        if maker.startswith("worked_examples"):
            stage["data"]["maker"] = re.sub(r"n=(800|400|\{each\})", "n=6", maker)
        if maker.startswith("verified_traces"):
            stage["data"] = {"file": str(folder / "traces.jsonl")}
        if maker.startswith("verified_pairs"):
            stage["data"] = {"file": str(folder / "pairs.jsonl")}
        if maker.startswith("questions"):
            stage["data"].pop("from", None)
            stage["data"]["maker"] = maker.replace("lowest=0.1,highest=0.9", "n=4")
            for count in ("n=96", "n=32"):
                stage["data"]["maker"] = stage["data"]["maker"].replace(count, "n=2")
        if "rewards" in stage.get("train", {}):
            stage["train"]["rewards"] = [*stage["train"]["rewards"], f"0.5*{RULE}"]
            stage["train"]["method"] = stage["train"]["method"].replace("rollout_tokens=100", "rollout_tokens=4")
            stage["train"]["method"] = stage["train"]["method"].replace("rollout_tokens=96", "rollout_tokens=4")
            stage["train"]["method"] = stage["train"]["method"].replace("batch_size=8,epochs=2", "batch_size=2")
        if "student" in stage:
            stage["student"] = {"layers": 1}
    recipe.pop("sizes")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "rungs", "online"), [
    ("grpo", ["sft-greedy", "rft-greedy", "grpo-greedy", "dapo-greedy", "rloo-greedy"], ["grpo", "dapo", "rloo"]),
    ("early", ["sft-greedy", "grpo-greedy", "dpo", "rft-greedy", "best-of-8"], ["grpo"]),
    (
        "starts",
        ["start-100", "dpo-100", "grpo-100", "start-300", "dpo-300", "grpo-300", "dpo-faster"],
        ["train-grpo-100", "train-grpo-300"],
    ),
    ("r1_zero", ["start", "zero-test"], ["zero"]),
    ("r1_steps", ["cold-test", "rl-1-test", "rl-steps-test"], ["rl-1", "rl-steps"]),
    ("r1", ["start", "cold-test", "rl-1-test", "sft-test", "rl-2-test", "student-test"], ["rl-1", "rl-2"]),
])  # fmt: skip
def test_the_recipe_runs(
    name: str, rungs: list[str], online: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = shrunk(name, tmp_path)
    report = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert [rung["name"] for rung in report["rungs"] if rung["lever"] != "oracle"] == rungs
    for stage in online:
        folder = next((tmp_path / "out").glob(f"*-{stage}"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert any(line["trained"] > 0 for line in lines)
    if name == "r1":  # divisors by rules, requests by the reward model, which has an opinion of every reply
        assert all(0 < line["reward_reward_model"] < 1 for line in lines if "reward_reward_model" in line)
        assert any("reward_reward_model" in line for line in lines)
        assert any("reward_exact" in line for line in lines)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_questions_are_chosen_of_the_split_that_was_sampled(path: Path) -> None:
    recipe = load_recipe(path)
    for stage in recipe.stages:
        if stage.data is None or stage.data.source is None or not str(stage.data.maker).startswith("questions"):
            continue
        sampled = recipe.stage(stage.data.source).eval
        assert sampled is not None
        assert parse(str(stage.data.maker)).params.get("split", "train") == sampled.split


def test_grpo_from_the_command_line(tmp_path: Path) -> None:
    tiny_models.ending_folder(tmp_path / "model")
    rows = [{"prompt": f"{i} plus 1?", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = f'grpo:task=reasoning_gym/chain_sum,rewards=["{RULE}"],dtype=float32,batch_size=2,rollout_tokens=4'
    arguments = ["train", method, "--model", str(tmp_path / "model"), "--data", str(tmp_path / "asked.jsonl")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out" / "checkpoint" / "posttrain.json").read_text())
    assert 0 < facts["rewards"]["reward_last"] <= 1
    assert facts["cost"]["usage"]["generated"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sft", "rewards": ["exact"]}, "'sft' asks no questions, so the stage's 'rewards' must be left out"),
        ({"method": "grpo:task=gsm8k"}, "in a recipe the task is the stage's or the recipe's"),
        ({"rewards": ["0.1*reward_model:model=stage:rm"]}, "stage 'grpo' needs 'rm', which is no earlier stage"),
        ({"rewards": ["exakt"]}, "unknown verifier or judge 'exakt'"),
        ({"method": "grpo:rewards=[math]", "rewards": ["exact"]}, "both the method and its stage have rewards"),
    ],
)
def test_a_wrong_stage_is_found_before_anything_runs(changes, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shrunk("grpo", tmp_path)
    recipe = yaml.safe_load(path.read_text())
    train = next(stage for stage in recipe["stages"] if stage["name"] == "grpo")["train"]
    train.update(changes)
    path.write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert message in f"{done.output}{done.exception}"
    assert not list(tmp_path.glob("out/*/DONE.json"))
