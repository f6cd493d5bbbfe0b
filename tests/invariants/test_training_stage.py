"""A training stage with the rows of another stage held out, from the recipe to `posttrain.json`; keys of stages without."""

import json
from pathlib import Path

import pytest
import tiny_models

from posttrain.core.errors import ConfigError
from posttrain.pipeline import stages as module
from posttrain.pipeline.recipe import Recipe
from posttrain.pipeline.stages import Done, Workshop

METHOD = "sft:lr=1e-2,batch_size=4,dtype=float32"


def recipe(tmp_path: Path, train: dict) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "held",
            "model": str(tmp_path / "model"),
            "task": "reasoning_gym/chain_sum",
            "stages": [
                {"name": "rows", "data": {"file": str(tmp_path / "rows.jsonl")}},
                {"name": "held", "data": {"file": str(tmp_path / "held.jsonl")}},
                {"name": "sft", "train": {"method": METHOD, "data": "rows", **train}},
            ],
        }
    )


@pytest.fixture
def workplace(tmp_path):
    tiny_models.folder(tmp_path / "model")
    rows = tiny_models.demonstrations(12)
    for name, part in (("rows", rows[:8]), ("held", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def run(shop: Workshop) -> dict:
    for stage in shop.recipe.stages:
        folder, key = shop.out / stage.name, shop.key(stage)
        folder.mkdir(parents=True)
        shop.done[stage.name] = Done(name=stage.name, key=key, folder=folder, cost=shop.run(stage, folder, key))
    return json.loads((shop.out / "sft" / "checkpoint" / "posttrain.json").read_text())


def test_rows_of_a_stage_are_held_out(workplace):
    told = run(Workshop(recipe(workplace, {"eval_data": "held"}), workplace / "out"))
    assert told["evaluation"]["rows"] == 4
    assert told["data"]["rows"] == 8


def test_the_key_of_a_stage_names_what_is_held_out_and_is_as_before_without(workplace, monkeypatch):
    texts = []
    dumps = json.dumps

    def key_and_facts(train):
        shop = Workshop(recipe(workplace, train), workplace / "out")
        shop.done = {n: Done(name=n, key=f"key of {n}", folder=workplace, cost=None) for n in ("rows", "held")}
        with monkeypatch.context() as patch:
            patch.setattr(module.json, "dumps", lambda value, **how: (texts.append(value), dumps(value, **how))[1])
            return shop.key(shop.recipe.stages[2]), texts[-1]

    plain, facts = key_and_facts({})
    assert facts["config"]["train"] == {"method": METHOD, "data": "rows"}
    assert "eval_data" not in facts
    held, facts = key_and_facts({"eval_data": "held"})
    assert facts["inputs"]["held"] == "key of held"
    by_file = {"method": f"{METHOD},eval_data={workplace / 'held.jsonl'}"}
    first, _ = key_and_facts(by_file)
    (workplace / "held.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    second, _ = key_and_facts(by_file)
    assert len({plain, held, first, second}) == 4  # a file counts by its content


def test_what_cannot_be_held_out(workplace):
    with pytest.raises(ValueError, match="stage 'sft' needs 'rows2', which is no earlier stage"):
        recipe(workplace, {"eval_data": "rows2"})
    twice = {"eval_data": "held", "method": f"{METHOD},eval_data=x.jsonl"}
    with pytest.raises(ConfigError, match="takes no eval_data from a stage, or names its own"):
        run(Workshop(recipe(workplace, twice), workplace / "out"))
