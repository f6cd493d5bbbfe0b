"""The recipe that compares ways to teach a student, at its smoke size, with a tiny teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from posttrain.cli.reporting import report_run
from posttrain.models.load import load
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "distillation.yaml"


def test_every_way_teaches_the_same_student(tmp_path: Path) -> None:
    tiny_models.folder(tmp_path / "model", tiny_models.llama(num_hidden_layers=3, max_position_embeddings=512))
    changes: dict[str, object] = {
        "model": str(tmp_path / "model"), "dtype": "float32",
        "stages.cut.student": {"layers": 2, "hidden": 24, "heads": 2, "ff": 32},
        "stages.taught.data": {"stages": ["rows"]},  # an untrained teacher writes nothing that could be kept
        "stages.train-on-policy.train.method":
            "distill:on_policy=1,divergence=reverse_kl,rollout_tokens=8,batch_size=16,epochs=1,lr=5e-4",
        "stages.train-on-policy-forward.train.method": "distill:on_policy=1,rollout_tokens=8,batch_size=16,epochs=1,lr=5e-4",
    }  # fmt: skip
    evaluated = ("teacher-test", "start", "gold", "replies", "sequence", "token", "on-policy", "on-policy-forward")
    changes |= {f"stages.{name}.eval.max_tokens": 8 for name in evaluated}
    recipe = load_recipe(RECIPE, size="smoke", overrides=changes)
    out = tmp_path / "run"
    report = run_recipe(recipe, RECIPE, out, report_run, size="smoke")
    ways = ["gold", "sequence", "token", "on-policy", "on-policy-forward"]
    assert [rung["name"] for rung in report["rungs"]] == ["teacher-test", "start", *ways]
    fixed = {rung["name"]: rung["fixed"]["flops"] for rung in report["rungs"]}
    assert fixed["sequence"] == pytest.approx(fixed["gold"])  # the same rows, in this test
    assert fixed["on-policy"] > fixed["gold"]
    assert fixed["token"] > fixed["gold"] + fixed["teacher-test"] - 1  # the teacher's own training is paid, too
    made = {name: load(next(out.glob(f"??-train-{name}")) / "checkpoint").fingerprint for name in ways}
    assert made["gold"] == made["sequence"]
    assert len(set(made.values())) == 4
