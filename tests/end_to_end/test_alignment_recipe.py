"""The recipe that compares SFT, DPO and best-of-N by a held-out reward model: a tiny model, made-up rows."""

import json
from pathlib import Path

import pytest
import tiny_models

from posttrain.cli.reporting import report_run
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "alignment.yaml"


@pytest.fixture
def folder(tmp_path):
    tiny_models.folder(tmp_path / "model", tiny_models.llama(max_position_embeddings=512))
    for name, verb in (("self_instruct_seed", "Say"), ("self_instruct_user_oriented", "Name")):
        rows = [{"id": str(i), "instruction": f"{verb} {i}.", "input": "", "output": f"{i}!"} for i in range(48)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"Name {i}?", "chosen": f"good {i}", "rejected": f"a bad one {i}"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


def test_alignment(folder):
    given = {"model": str(folder / "model"), "dtype": "float32", "slots": 16, "vars.data": str(folder)}
    for name in ("policy", "reward", "judge"):  # a random model finishes no reply, so there would be no pairs of them
        given[f"stages.{name}-pairs.data"] = {"file": str(folder / "pairs.jsonl")}
    recipe = load_recipe(RECIPE, size="smoke", overrides=given)
    for stage in recipe.stages:
        if stage.eval is not None:  # a random model writes until it is stopped
            stage.eval.__dict__["max_tokens"] = 4
    out = folder / "out"
    report = run_recipe(recipe, RECIPE, out, report_run, size="smoke")
    rates = report["alignment"]["win_rates"]
    assert [(rate["label"], rate["against"]) for rate in rates] == [
        *((who, "reference replies") for who in ("Start", "SFT", "Preferred replies", "DPO", "SFT, best of 2",
                                                 "SFT, best of 3", "SFT, best of 4")),
        *((who, "SFT") for who in ("Preferred replies", "DPO", "SFT, best of 4")),
    ]  # fmt: skip
    assert {rate["items"] for rate in rates} == {4}
    assert all(rate["judge"]["tokens"] > 0 for rate in rates)
    found = report["alignment"]["objectives"]
    assert [model["label"] for model in found["models"]] == ["Start", "SFT", "Preferred replies", "DPO"]
    assert found["questions"] == {"helpful": 4, "harmless": 80}
    right = {rung["label"]: rung["accuracy"] for rung in report["rungs"]}
    for model in found["models"]:  # the objective is the task's own score
        assert model["scores"]["harmless"]["mean"] == pytest.approx(right[model["label"]])
    assert set(report["rungs"][0]["measures"]) == {"refusals of harmful requests", "refusals of harmless requests"}

    # what is compared is nothing that a policy, the reward model or the judge was trained on
    def asked(name):
        (path,) = out.glob(f"[0-9][0-9]-{name}")
        return {row.example for row in load_ledger(path).rows}

    assert asked("reward-samples") == {str(i) for i in range(16)}
    assert asked("judge-samples") == {str(i) for i in range(16, 32)}
    assert asked("sft-replies") == {str(i) for i in range(32, 36)}
    assert load_recipe(RECIPE).stage("policy-samples").eval.task == "lessons"  # of another file
