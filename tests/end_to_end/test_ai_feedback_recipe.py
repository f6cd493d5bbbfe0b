"""The recipe of AI feedback on a tiny model: a labeller trained, its labels made, its bias told, DPO on soft labels."""

import json
from pathlib import Path

import pytest
import tiny_models
import yaml

from posttrain.cli.reporting import report_run
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def shrunk(folder: Path) -> Path:
    """Write the smoke size with a tiny model, few tokens, and files where right answers would be needed."""
    tiny_models.folder(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.preferences(6)))
    verdicts = [{"prompt": f"first or second {i}?", "completion": f"Verdict: {1 + i % 2}"} for i in range(10)]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    recipe = yaml.safe_load((RECIPES / "ai_feedback.yaml").read_text(encoding="utf-8"))
    changes = recipe.pop("sizes")["smoke"]
    assert "vars.worked" in changes
    recipe |= {"model": str(folder / "model"), "dtype": "float32", "examples": {"test": 2, "validation": 6, "train": 12}}
    recipe["task"] = "reasoning_gym/gcd:max_value=12"  # questions that the context of 256 tokens holds
    for stage in recipe["stages"]:
        if "eval" in stage:
            stage["eval"]["max_tokens"] = 4
            stage["eval"]["strategy"] = stage["eval"].get("strategy", "greedy").replace("n=4", "n=3")
        if stage["name"] in ("verdicts", "gold"):
            stage["data"] = {"file": "verdicts.jsonl" if stage["name"] == "verdicts" else "pairs.jsonl"}
        if stage["name"] in ("train-ai", "train-gold"):
            stage["train"]["method"] = changes[f"stages.{stage['name']}.train.method"]
        if stage["name"] == "worked":
            stage["data"]["maker"] = "worked_examples:n=6"
        if stage["name"] == "labels":  # a random model never stops, and its answers cannot be read
            short = 'principles="be right",template="{question} {first} {second} {criteria}"'  # its context is 256 tokens
            stage["data"] = {"maker": f"ai_feedback:biased=keep,{short}", "from": "whole", "labeller": "stage:labeller"}
    recipe["stages"].insert(
        next(at for at, stage in enumerate(recipe["stages"]) if stage["name"] == "labels"),
        {"name": "whole", "eval": {"split": "validation", "limit": 3, "teacher": "scripted:replies=9",
                                   "strategy": "sample:n=4", "max_tokens": 32}},
    )  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shrunk(tmp_path)
    report = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert [rung["name"] for rung in report["rungs"]] == ["sft-greedy", "dpo-ai", "dpo-gold"]
    (folder,) = (tmp_path / "out").glob("??-labels")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert rows
    assert all(0.5 <= row["preference"] <= 1 and row["tie"] == (row["preference"] == 0.5) for row in rows)
    facts = json.loads((folder / "facts.json").read_text())["labeller"]
    assert facts["read"] == ["logprobs"]
    assert facts["pairs"] == len(rows)
    assert 0 < facts["position"]["p_first"] < 1
    done = json.loads((folder / "DONE.json").read_text())
    assert done["cost"]["flops"] == pytest.approx(sum(row.cost["judge"]["flops"] for row in load_ledger(folder).rows))
    (trained,) = (tmp_path / "out").glob("??-train-ai/checkpoint/posttrain.json")
    assert json.loads(trained.read_text())["data"]["soft_labels"] == len(rows)
    assert "'labels': position:" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("size", ["smoke", "small", "full"])
def test_every_size_reads_and_its_methods_exist(size: str, tmp_path: Path) -> None:
    from posttrain.pipeline.stages import Workshop

    recipe = load_recipe(RECIPES / "ai_feedback.yaml", size=size)
    shop = Workshop(recipe, tmp_path)
    assert all(shop.versions(stage) for stage in recipe.stages)


@pytest.mark.parametrize("make", ["sft", "pairs"])
def test_critique_and_revision_by_the_model_itself(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maker = f"critique_revise:principles=[honest,concise],rounds=2,make={make}"
    stages = [
        {"name": "before", "lever": "prompting", "eval": {}},
        {"name": "samples", "eval": {"split": "train", "limit": 4}},
        {"name": "revised", "data": {"maker": maker, "from": "samples"}},
    ]
    values = {"name": "cai", "model": "scripted", "task": "reasoning_gym/chain_sum", "stages": stages,
              "examples": {"train": 4, "test": 2}}  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    run_recipe(load_recipe(Path("recipe.yaml")), Path("recipe.yaml"), Path("out"), report_run)
    (folder,) = Path("out").glob("??-revised")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert all(row.keys() >= ({"completion"} if make == "sft" else {"chosen", "rejected"}) for row in rows)
    assert {role for row in load_ledger(folder).rows for role in row.cost} == {"judge"}
    assert "responses were right before" in Path("out/report.md").read_text()
