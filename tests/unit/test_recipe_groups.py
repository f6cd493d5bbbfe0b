"""Groups of stages that repeat, parts of a split, and rows that grow from stage to stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.core.errors import ConfigError
from posttrain.core.types import Example
from posttrain.pipeline.groups import expanded
from posttrain.pipeline.making import joined
from posttrain.pipeline.recipe import EvalStage, Recipe, load_recipe

ROUNDS = {
    "name": "star",
    "rounds": 2,
    "stages": [
        {"name": "sample-{round}", "model": "tuned-{previous}", "eval": {"split": "train", "part": "{round}/{rounds}"}},
        {"name": "rows-{round}", "data": {"maker": "verified_traces", "from": "sample-{round}", "also": "rows-{previous}"}},
        {"name": "tuned-{round}", "train": {"method": "sft", "data": "rows-{round}"}},
    ],
}
START = [
    {"name": "rows-0", "data": {"maker": "worked_examples"}},
    {"name": "tuned-0", "train": {"method": "sft", "data": "rows-0"}},
]


def recipe(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "groups", "model": "scripted", "task": "gsm8k", "stages": list(stages), **more}


def test_rounds_are_written_out_with_their_numbers() -> None:
    made = Recipe.model_validate(recipe(*START, ROUNDS))
    assert [stage.name for stage in made.stages] == [
        "rows-0", "tuned-0", "sample-1", "rows-1", "tuned-1", "sample-2", "rows-2", "tuned-2",
    ]  # fmt: skip
    assert [made.stage(f"sample-{i}").model for i in (1, 2)] == ["tuned-0", "tuned-1"]
    assert [made.stage(f"tuned-{i}").model for i in (1, 2)] == [None, None]
    assert made.stage("rows-2").inputs == ("sample-2", "rows-1")
    asked = made.stage("sample-2").eval
    assert asked is not None
    assert asked.part == "2/2"


def test_the_first_round_may_differ() -> None:
    first = {"sample-{round}.model": None, "sample-{round}.eval.prompt": "few_shot_cot:k=4", "rows-{round}.data.also": None}
    made = Recipe.model_validate(recipe({**ROUNDS, "first": first}))
    one, two = (made.stage(f"sample-{i}") for i in (1, 2))
    assert (one.model, two.model) == (None, "tuned-1")
    assert one.eval is not None
    assert two.eval is not None
    assert (one.eval.prompt, two.eval.prompt) == ("few_shot_cot:k=4", "zero_shot")
    assert (made.stage("rows-1").inputs, made.stage("rows-2").inputs) == (("sample-1",), ("sample-2", "rows-1"))


def test_a_stage_for_each_value() -> None:
    group = {"name": "limits", "each": ["3", 5], "stages": [{"name": "ask-{each}", "eval": {"limit": "{each}"}}]}
    made = Recipe.model_validate(recipe(group))
    assert [(stage.name, stage.eval and stage.eval.limit) for stage in made.stages] == [("ask-3", 3), ("ask-5", 5)]
    assert expanded([{"name": "plain"}, "odd"]) == [{"name": "plain"}, "odd"]


def test_sizes_and_settings_reach_into_groups(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    sizes = {"long": {"stages.star.rounds": 3, "stages.star.stages.sample-{round}.eval.limit": 7}}
    path.write_text(yaml.safe_dump(recipe(*START, ROUNDS, sizes=sizes)))
    made = load_recipe(path, size="long", overrides={"stages.star.stages.rows-{round}.data.also": None})
    asked = made.stage("sample-3").eval
    assert asked is not None
    assert (asked.limit, asked.part) == (7, "3/3")
    assert made.stage("rows-3").inputs == ("sample-3",)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"name": "g", "stages": [{"name": "a", "eval": {}}]}, "group 'g': .*give either 'rounds', a number, or 'each'"),
        ({"name": "g", "rounds": 0, "stages": [{}]}, "group 'g': 'rounds'"),
        ({"name": "g", "round": 2, "stages": [{}]}, "group 'g': unknown key 'round'; did you mean 'rounds'"),
        ({**ROUNDS, "first": {"simple.model": None}}, "group 'star', first: 'stages.simple.model': no stage 'simple'"),
        (ROUNDS, "stage 'sample-1' needs 'tuned-0', which is no earlier stage"),
        ({"name": "g", "rounds": 2, "stages": [{"name": "a", "eval": {}}]}, "two stages are called 'a'"),
    ],
)
def test_what_cannot_be_repeated(group: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(group)))
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_parts_of_a_split_are_disjoint_and_whole(count: int) -> None:
    examples = [Example(id=str(i)) for i in range(count)]
    parts = [EvalStage(part=f"{i}/3").part_of(examples) for i in (1, 2, 3)]
    assert [example for part in parts for example in part] == examples
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert EvalStage().part_of(examples) == examples


def test_a_part_beyond_the_last_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe({"name": "a", "eval": {"part": "4/3"}})))
    with pytest.raises(ConfigError, match="part 4/3 is beyond the last of 3 parts"):
        load_recipe(path)


def test_rows_grow_without_repetition() -> None:
    earlier = [{"id": "a", "prompt": "1?", "completion": "one"}, {"prompt": "2?", "completion": "two"}]
    new = [{"id": "b", "prompt": "1?", "completion": "one"}, {"prompt": "1?", "completion": "1"}]
    rows, counts = joined(earlier, new, {"replies": 9, "rows": 2})
    assert rows == [*earlier, new[1]]
    assert counts == {"replies": 9, "rows": 3, "new": 2, "earlier": 2, "there_already": 1}
