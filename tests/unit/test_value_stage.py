"""A training method whose settings name an earlier stage's value model: found, ordered, and put in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.core.errors import ConfigError
from posttrain.pipeline.naming import placed, stages_named
from posttrain.pipeline.recipe import Recipe, TrainStage
from posttrain.pipeline.training import files_of, trainer_of

SPEC = "oreo:lr=1e-5,value_start=stage:first/value"


def recipe(*stages: dict[str, Any]) -> Recipe:
    rows = {"name": "rows", "data": {"file": "rows.jsonl"}}
    return Recipe.model_validate({"name": "r", "model": "m", "stages": [rows, *stages]})


def test_a_stage_reads_the_stage_that_its_method_names() -> None:
    found = recipe(
        {"name": "first", "train": {"method": "oreo", "data": "rows"}},
        {"name": "second", "model": "first", "train": {"method": SPEC, "data": "rows"}},
    )
    assert found.stage("second").inputs == ("first", "rows", "first")
    assert stages_named(SPEC) == ("first",)


def test_the_folder_stands_where_the_name_stood(tmp_path: Path) -> None:
    value = str((tmp_path / "checkpoint" / "value").resolve())
    stage = TrainStage(method=SPEC, data="rows")
    trainer: Any = trainer_of(stage, {"first": tmp_path, "rows": tmp_path})
    assert trainer.value_start == value
    assert trainer.lr == 1e-5
    verifier = "beam_search:verifier=(value:model=stage:first/value)"
    assert f"model={value}" in placed(verifier, {"first": tmp_path})
    assert files_of(trainer_of(stage)) == {}  # the named stage's key is among the inputs'


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("oreo:value_start=stage:rows/value", "stage:rows in its method is not a training stage"),
        ("oreo:value_start=stage:frist/value", "needs 'frist', which is no earlier stage"),
    ],
)
def test_a_wrong_name_is_one_sentence(method: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe({"name": "second", "train": {"method": method, "data": "rows"}})


def test_a_stage_has_a_value_model_rewards_and_what_is_watched_all_from_other_stages(tmp_path: Path) -> None:
    first = {"name": "first", "train": {"method": "oreo", "data": "rows"}}
    asked = {
        "method": "ppo:value_start=stage:first/value", "data": "rows", "watched": ["reward_model:model=stage:first"],
        "rewards": ["2*reward_model:model=stage:first"],
    }  # fmt: skip
    found = recipe(first, {"name": "second", "train": asked}).stage("second")
    assert set(found.inputs) == {"first", "rows"}
    assert found.train is not None
    trainer: Any = trainer_of(found.train, {"first": tmp_path, "rows": tmp_path})
    folder = str((tmp_path / "checkpoint").resolve())
    assert trainer.value_start == f"{folder}/value"
    assert folder in trainer.rewards[0]
    assert trainer.rewards[0].startswith("2*")
    assert folder in trainer.watched[0]
    with pytest.raises(ConfigError, match="both the method and its stage have watched"):
        trainer_of(TrainStage(method="ppo:watched=[exact]", data="rows", watched=["rule"]))
