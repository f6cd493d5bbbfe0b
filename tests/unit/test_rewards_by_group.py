"""`data rewards`: agreement with each group of annotators, a judge in place of a reward model, rows that cannot be read."""

import json
from types import SimpleNamespace

import pytest
import tiny_models
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.cli.rewarding import rewards_report
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Completion, Usage
from posttrain.data.annotator_groups import groups_of
from posttrain.data.readable import readable
from posttrain.pipeline.recipe import DataStage, Recipe
from posttrain.pipeline.stages import Workshop
from posttrain.verifiers.reward_model import RewardModel


@pytest.fixture
def longest(monkeypatch):
    """A reward model whose reward is the length of the reply."""

    async def score(prompt, text):
        return Completion(text=text, rewards=(float(len(text)),), usage=Usage(calls=1, scored=len(text)))

    monkeypatch.setattr(RewardModel, "open", lambda self: SimpleNamespace(score=score, fingerprint="length"))


def pair(i, chosen, rejected, **more):
    return {"prompt": f"Question {i}?", "chosen": chosen, "rejected": rejected, **more}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


OPTIONS = {"device": "cpu", "dtype": "float32", "limit": None}


def test_agreement_with_each_group_by_hand(longest, tmp_path):
    rows = [
        pair(0, "long one", "short", who={"nurses": "chosen", "patients": "rejected", "others": "tie"}),
        pair(1, "long one", "short", who={"nurses": "chosen", "patients": "chosen"}),
        pair(2, "no", "longer", who="nurses"),
        pair(3, "same", "four", who=["nurses", "patients"]),
        pair(4, "long one", "short", who=None),
    ]
    found = rewards_report(written(tmp_path / "rows.jsonl", rows), model="m", groups="who", **OPTIONS)
    assert found["accuracy"] == 3.5 / 5
    nurses, patients = found["groups"]["nurses"], found["groups"]["patients"]
    assert list(found["groups"]) == ["nurses", "patients"]
    assert nurses["rate"] == (1 + 1 + 0 + 0.5) / 4
    assert patients["rate"] == (0 + 1 + 0.5) / 3
    assert nurses["p_holm"] >= nurses["p"]
    assert found["bad_rows"] == 0


def test_rows_of_one_prompt_are_one_item(longest, tmp_path):
    rows = [pair(i % 10, "long one", f"s{i}", who="nurses") for i in range(100)]
    found = rewards_report(written(tmp_path / "rows.jsonl", rows), model="m", groups="who", **OPTIONS)
    assert (found["groups"]["nurses"]["items"], found["groups"]["nurses"]["comparisons"]) == (10, 100)


def test_groups_are_read_strictly():
    assert groups_of({"g": None}, "g", "row 1", pair=True) == ()
    assert groups_of({"g": ["a", "a", "b"]}, "g", "row 1", pair=False) == (("a", 1.0), ("b", 1.0))
    with pytest.raises(DataError, match=r"row 1: no column 'gruop'.*group"):
        groups_of({"group": "a"}, "gruop", "row 1", pair=True)
    for wrong, two in (({"a": "better"}, True), ({"a": "chosen"}, False), (3, True), ([1], True)):
        with pytest.raises(DataError, match="must be a group's name"):
            groups_of({"g": wrong}, "g", "row 1", pair=two)


def test_a_row_that_cannot_be_read_is_an_error_or_left_out_and_counted(longest, tmp_path):
    bad = {"prompt": "Is it?", "chosen": [{"role": "assistant", "content": True}], "rejected": "no"}
    rows = [pair(0, "long one", "short"), bad, bad]
    path = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"row 2, 'chosen', message 0: 'content' must be a text(?s:.*)with --skip-bad"):
        rewards_report(path, model="m", **OPTIONS)
    told = CliRunner().invoke(app, ["data", "rewards", path, "--model", "m", "--skip-bad"], catch_exceptions=False)
    assert "left out: 2 rows that cannot be read; the first:" in told.stdout
    found = rewards_report(path, model="m", skip_bad=True, **OPTIONS)
    assert (found["rows"], found["bad_rows"], found["comparisons"]) == (1, 2, 1)
    assert "row 2" in found["first_bad"]
    with pytest.raises(DataError, match="none of 2 rows can be read"):
        readable([bad, bad], "f", skip=True, mend="")


def test_a_judge_in_place_of_a_reward_model(tmp_path):
    tiny_models.folder(tmp_path / "model", tiny_models.llama(max_position_embeddings=256))
    rows = [pair(i, "yes" * (i + 1), "no", subset="ab"[i % 2], who="nurses") for i in range(4)]
    path = written(tmp_path / "rows.jsonl", rows)
    spec = f'pairwise:model={tmp_path / "model"},read=logprobs,prompt="{{question}} {{first}} {{second}}"'
    command = ["data", "rewards", path, "--judge", spec, "--groups", "who"]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    assert found["comparisons"] == found["flips"]["pairs"] == 4
    assert found["groups"]["nurses"]["rate"] == found["accuracy"]
    assert set(found["subsets"]) == {"a", "b"}
    shown = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "agrees with nurses" in shown
    assert "changes its mind with the order in" in shown
    for wrong, told in (({"model": None}, "give either --model"), ({"model": "m", "judge": spec}, "give either --model"),
                        ({"model": None, "judge": "judge:model=x"}, "a judge of two is needed")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            rewards_report(path, **wrong, **OPTIONS)


def test_a_data_stage_reads_a_part_of_the_prompts_and_skips_bad_rows(tmp_path):
    rows = [pair(i // 2, f"yes {i}", "no") for i in range(12)]
    rows.insert(3, {"prompt": "Is it?", "chosen": True, "rejected": "no"})
    path = written(tmp_path / "rows.jsonl", rows)

    def read(**settings):
        stage = {"name": "rows", "data": {"file": path, **settings}}
        shop = Workshop(Recipe.model_validate({"name": "r", "model": "m", "stages": [stage]}), tmp_path)
        (tmp_path / "out").mkdir(exist_ok=True)
        shop.run(shop.recipe.stages[0], tmp_path / "out", "key")
        made = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
        return [row["chosen"] for row in made], json.loads((tmp_path / "out/counts.json").read_text())

    with pytest.raises(DataError, match="row 4"):
        read()
    whole, counts = read(skip_bad=True)
    assert counts == {"rows": 12, "bad_rows": 1}
    halves = [read(skip_bad=True, part=part) for part in ("1/2", "2/2")]
    assert [text for texts, _ in halves for text in texts] == whole
    assert halves[0][1] == {"rows": 6, "bad_rows": 1, "of other parts": 6}
    with pytest.raises(ConfigError, match="part 3/2 of the rows"):
        read(skip_bad=True, part="3/2")
    with pytest.raises(ValueError, match="'part' takes some of the rows that are read"):
        DataStage(maker="worked_examples", part="1/2")
    with pytest.raises(ValueError, match="'skip_bad' is of the rows of a 'file'"):
        DataStage(sources="a.jsonl", skip_bad=True)
