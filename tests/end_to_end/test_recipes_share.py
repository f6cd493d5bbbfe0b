"""Recipes that ship and say that they share stages do: `--reuse` would take them over."""

from pathlib import Path

import pytest
import tiny_models

from posttrain.core.types import Cost
from posttrain.pipeline.done import Done
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.stages import Workshop

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BASE = ["worked", "sft", "sft-greedy", "samples", "pairs"]


def keys(name: str, folder: Path) -> dict[str, str]:
    recipe = load_recipe(RECIPES / f"{name}.yaml", size="small", overrides={"model": str(folder)})
    shop = Workshop(recipe, folder / name)
    for stage in recipe.stages:
        shop.done[stage.name] = Done(name=stage.name, key=shop.key(stage), folder=folder, cost=Cost())
    return {name: done.key for name, done in shop.done.items()}


@pytest.fixture(scope="module")
def preference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.folder(folder)
    return folder, keys("preference", folder)


@pytest.mark.parametrize(("name", "shared"), [
    ("grpo", BASE[:-1]),
    ("online_dpo", [*BASE, "train-dpo", "dpo"]),
    ("reward_model", [*BASE, "reward"]),
    ("rlhf", [*BASE, "reward", "best-reward"]),
])  # fmt: skip
def test_stages_are_those_of_preference(name: str, shared: list[str], preference: tuple[Path, dict[str, str]]) -> None:
    folder, theirs = preference
    own = keys(name, folder)
    assert [stage for stage in own if theirs.get(stage) == own[stage]] == shared


def test_students_begin_as_distillation_does(tmp_path: Path) -> None:
    tiny_models.folder(tmp_path)
    theirs, own = keys("distillation", tmp_path), keys("students", tmp_path)
    assert [stage for stage in own if theirs.get(stage) == own[stage]] == ["first-rows", "teacher", "teacher-test"]
