"""A search as a stage of a recipe: what it found is used by later stages, and paid for once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

RECIPE: dict[str, Any] = {
    "name": "searching",
    "model": "scripted",
    "task": "reasoning_gym/chain_sum:min_terms=2,max_terms=3",
    "examples": {"test": 20, "train": 120},
    "stages": [
        {"name": "plain", "lever": "prompting", "eval": {"prompt": "few_shot:k=2"}},
        {
            "name": "search",
            "search": {
                "prompt": "few_shot:k=2",
                "given": ["Add the numbers."],
                "settings": {"candidates": 3, "select": 10, "first": 5},
            },
        },
        {"name": "found", "lever": "prompting", "eval": {"prompt": "few_shot:k=2", "instruction": "search"}},
    ],
}


def run(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run_recipe(load_recipe(path), path, folder / "out", report_run)


def test_the_instruction_is_used_and_the_search_is_a_fixed_cost(tmp_path: Path) -> None:
    report = run(tmp_path, RECIPE)
    searched = json.loads((tmp_path / "out" / "02-search" / "prompt_search.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "03-found" / "ledger.jsonl").read_text().splitlines()]
    wanted = searched["prompt"] if searched["instruction"] else "few_shot:k=2"
    assert {row["prompt"] for row in rows} == {wanted}
    plain, found = report["rungs"]
    counts = searched["cost"]["search"]
    assert plain["fixed"]["tokens"] == 0
    assert found["fixed"]["tokens"] == counts["prompt"] + counts["generated"] + counts["scored"] > 0
    before = (tmp_path / "out" / "02-search" / "prompt_search.json").read_bytes()
    run(tmp_path, RECIPE)  # finished: skipped
    assert (tmp_path / "out" / "02-search" / "prompt_search.json").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.old-*"))


def test_mistakes_are_said_before_anything_runs(tmp_path: Path) -> None:
    def changed(at: int, **stage: Any) -> dict[str, Any]:
        stages = [dict(one) for one in RECIPE["stages"]]
        stages[at] |= stage
        return {**RECIPE, "stages": stages}

    for recipe, message in (
        (changed(2, eval={"instruction": "plain"}), "instruction 'plain' is not a search stage"),
        (changed(2, eval={"instruction": "serach"}), "did you mean 'search'"),
        (changed(1, search={"settings": {"candidate": 3}}), "did you mean 'candidates'"),
        (changed(1, search={"prompt": "few_shots"}), "did you mean 'few_shot'"),
        (changed(1, search={"prompt": "instructed:text=a"}), "without 'instructed'"),
        (changed(1, eval={}), "exactly one of 'eval', 'data', 'train', 'search', 'student'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, recipe)
    assert not list((tmp_path / "out").glob("0*")) if (tmp_path / "out").exists() else True
