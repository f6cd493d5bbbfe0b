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
    requests = [{"id": str(i), "instruction": f"Say {i}.", "input": "", "output": f"{i}!"} for i in range(12)]
    pairs = [{"prompt": f"Name {i // 2}?", "chosen": f"good {i}", "rejected": f"a bad one {i}"} for i in range(24)]
    pairs.insert(3, {"prompt": "True?", "chosen": [{"role": "assistant", "content": True}], "rejected": "no"})
    for name, rows in (("self_instruct_seed", requests), ("pandalm_test", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_alignment(folder):
    given = {"model": str(folder / "model"), "dtype": "float32", "slots": 16, "vars.data": str(folder), "vars.tokens": 4}
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

    # nothing that is asked was trained on, and the parts of the pairs share no prompt
    def prompts(name):
        (path,) = out.glob(f"[0-9][0-9]-{name}/rows.jsonl")
        return {json.dumps(json.loads(line)["prompt"]) for line in path.read_text().splitlines()}

    parts = [prompts(f"{name}-pairs") for name in ("policy", "reward", "judge")]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert len(set.union(*parts)) == 12
    (asked,) = out.glob("[0-9][0-9]-sft-replies")
    assert {row.example for row in load_ledger(asked).rows} == {"6", "7", "8", "9"}
    assert {f"Say {i}." for i in range(6)} == {json.loads(p)[0]["content"] for p in prompts("rows")}
