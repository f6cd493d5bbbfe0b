"""Recipes with a cache and with budgets: stages share one pool, keys of stages without a budget stay what they were."""

import json
from pathlib import Path

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.pipeline.stages import Workshop

RECIPE = {
    "name": "small",
    "model": "scripted",
    "task": "reasoning_gym/chain_sum:min_terms=2,max_terms=2",
    "examples": {"test": 6},
    "stages": [
        {"name": "four", "lever": "test-time", "eval": {"strategy": "self_consistency:n=4", "max_tokens": 20}},
        {"name": "six", "lever": "test-time", "eval": {"strategy": "self_consistency:n=6", "max_tokens": 20}},
    ],
}
HELD = {"name": "held", "lever": "test-time", "label": "Held", "eval": {**RECIPE["stages"][1]["eval"], "budget_tokens": 55}}


def loaded(folder: Path, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return load_recipe(path), path


def run(folder: Path, out: str, **changes):
    recipe, path = loaded(folder, **changes)
    return run_recipe(recipe, path, folder / out, report_run)


def rows(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / stage / "ledger.jsonl").read_text().splitlines()]


def test_stages_share_the_pool_and_the_result_is_the_same(tmp_path: Path) -> None:
    plain = run(tmp_path, "plain")
    kept = run(tmp_path, "kept", cache=True)
    for stage in ("01-four", "02-six"):
        assert (tmp_path / "plain" / stage / "ledger.jsonl").read_bytes() == (
            tmp_path / "kept" / stage / "ledger.jsonl"
        ).read_bytes()
    assert [rung["per_query"]["tokens"] for rung in kept["rungs"]] == [r["per_query"]["tokens"] for r in plain["rungs"]]
    assert [rung["spent"]["replayed"] > 0 for rung in kept["rungs"]] == [False, True]
    assert (tmp_path / "kept" / "generations.sqlite").is_file()
    assert not (tmp_path / "plain" / "generations.sqlite").exists()
    assert not list((tmp_path / "kept").glob("generations.sqlite-*"))  # closed: nothing is left in a log beside it


def test_a_budget_in_a_stage_is_kept_and_reported(tmp_path: Path) -> None:
    report = run(tmp_path, "out", stages=[RECIPE["stages"][0], HELD])
    for row in rows(tmp_path / "out", "02-held"):
        assert row["cost"]["policy"]["prompt"] + row["cost"]["policy"]["generated"] <= 55
    rate = report["rungs"][1]["budget_rate"]
    assert rate > 0
    assert f"The budget ended Held on {rate:.1%} of the questions: it answered with what it had." in report["notes"]
    with pytest.raises(ConfigError, match="tokens or in FLOPs, not both"):
        loaded(tmp_path, stages=[{"name": "a", "eval": {"budget_tokens": 5, "run_budget_flops": 1e9}}])


def test_a_stage_without_a_budget_has_the_key_it_had(tmp_path: Path) -> None:
    recipe, _ = loaded(tmp_path, stages=[*RECIPE["stages"], HELD])
    shop = Workshop(recipe, tmp_path)
    assert shop.key(recipe.stage("six")) == "71426c04a190c6c5"  # as before there were budgets: finished runs stay finished
    assert shop.key(recipe.stage("held")) != shop.key(recipe.stage("six"))
    assert shop.key(loaded(tmp_path, cache=True)[0].stage("six")) == shop.key(recipe.stage("six"))
