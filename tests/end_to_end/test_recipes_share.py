"""Recipes that ship and say that they share stages do: `--reuse` would take them over."""

from pathlib import Path

import pytest
import tiny_models
import yaml

from posttrain.core.types import Cost
from posttrain.pipeline.done import Done
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.stage_tasks import StageTasks
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
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.folder(folder)
    return folder, {of: keys(of, folder) for of in ("preference", "feedback", "rlhf")}


@pytest.mark.parametrize(("name", "of", "shared"), [
    ("grpo", "preference", BASE[:-1]),
    ("judgements", "rlhf", [*BASE[:-1], "scored", "reward"]),
    ("online_dpo", "feedback", [*BASE, "train-dpo", "dpo"]),
    ("process_reward", "feedback", [*BASE[:3], "vote"]),
    ("oreo", "rlhf", BASE[:3]),
    ("ai_feedback", "rlhf", BASE[:3]),
])  # fmt: skip
def test_stages_are_those_of(name: str, of: str, shared: list[str], run: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, theirs = run
    own = keys(name, folder)
    assert [stage for stage in own if theirs[of].get(stage) == own[stage]] == shared


def test_students_begin_as_distillation_does(tmp_path: Path) -> None:
    tiny_models.folder(tmp_path)
    theirs, own = keys("distillation", tmp_path), keys("students", tmp_path)
    assert [stage for stage in own if theirs.get(stage) == own[stage]] == ["first-rows", "teacher", "teacher-test"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_report_can_compare_the_rungs_of_every_size(path: Path) -> None:
    for size in yaml.safe_load(path.read_text(encoding="utf-8"))["sizes"]:
        StageTasks(load_recipe(path, size=size)).check_rungs()
