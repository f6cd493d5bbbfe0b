"""Rows for online reinforcement learning: questions with what grading needs, there and back, chosen by difficulty."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Example, Message, Prompt, Sampled
from posttrain.data.examples import example_of, example_row
from posttrain.data.rows import rows_with_scores
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.preference.questions import Questions
from posttrain.prompting.zero_shot import ZeroShot
from posttrain.tasks import load_task
from posttrain.verifiers import build_verifier

CHOICE = {
    "name": "capitals",
    "splits": {"train": "rows.jsonl"},
    "choices": "options",
    "extract": "choice",
    "grade": "choice",
}


def task_of(name: str, folder: Path) -> Any:
    """A task of each kind, with a train split."""
    if name == "choices":
        rows = [{"question": "Italy?", "options": ["Milan", "Rome"], "answer": "B", "subject": "geography"}]
        (folder / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
        (folder / "task.yaml").write_text(yaml.safe_dump(CHOICE))
        return load_task(str(folder / "task.yaml"))
    if name == "gsm8k":
        (folder / "test.jsonl").write_text(json.dumps({"question": "Q?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}) + "\n")
        return load_task("gsm8k", data=folder / "test.jsonl")  # its train split is written into the package
    return load_task(f"{name}:train=4,validation=1,test=1")


@pytest.mark.parametrize(
    "name",
    ["reasoning_gym/chain_sum", "reasoning_gym/propositional_logic", "reasoning_gym/game_of_life", "gsm8k", "choices"],
)
def test_what_grading_needs_goes_into_rows_and_back(name: str, tmp_path: Path) -> None:
    task = task_of(name, tmp_path)
    made = Questions()(task, ZeroShot(), [], seed=0)
    rows = json.loads(json.dumps(made.rows))
    examples = [example_of(row) for row in rows]
    assert examples == [replace(example, rationale=None) for example in task.examples("train")]
    assert all(set(row) == {"id", "prompt", "example"} and "rationale" not in row["example"] for row in rows)
    fresh = task_of(name, tmp_path)  # one that has made no examples itself grades by the row alone
    for row, example in zip(rows, examples, strict=True):
        assert example.question in row["prompt"][-1]["content"]
        verifier = build_verifier("exact", task=fresh, golds={example.id: example})
        right, wrong = asyncio.run(verifier(example.public(), [f"Answer: {example.answer}", "Answer: no idea"]))
        assert (right.value, wrong.value) == (fresh.grade(example, fresh.extract(f"Answer: {example.answer}")), 0.0)
        assert right.value == 1.0 or name == "reasoning_gym/propositional_logic"  # whose answers its own rule proves


def test_facts_that_json_has_no_form_for_come_back_as_they_were() -> None:
    gold = {"grid": ((1, 2), [3.5, None]), "by_number": {1: "a", (2, 3): {"x": True}}, "odd": {"$tuple": [1]}, "empty": ()}
    example = Example(id="é", messages=(Message(role="user", content="Hi"),), meta={"level": 3}, answer="", gold=gold)
    back = example_of({"example": json.loads(json.dumps(example_row(example)))})
    assert back == replace(example, answer="")
    assert isinstance(back.gold["grid"][0], tuple)
    for value, message in ((float("nan"), "nan"), ({1, 2}, "type set"), (b"x", "type bytes")):
        with pytest.raises(DataError, match=f"example 'a', gold, k.*{message}"):
            example_row(Example(id="a", gold={"k": [value]}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "?"}, "row 3: no 'example' with what grading needs"),
        ({"example": "a"}, "no 'example' with what grading needs"),
        ({"example": {"question": "?"}}, "'example': no 'id', by which verifiers find its gold answer"),
        ({"example": {"id": "a", "answer": "4"}}, "neither a 'question' nor 'messages'"),
        ({"example": {"id": "a", "question": "?", "anwser": "4"}}, "unknown key 'anwser'; did you mean 'answer'"),
        ({"example": {"id": "a", "question": "?", "answer": 4}}, "'answer' must be a text, not 4"),
        ({"example": {"id": "a", "question": "?", "choices": "AB"}}, "'choices' must be a list of texts"),
        ({"example": {"id": "a", "question": "?", "choices": [1]}}, "'choices' must be a list of texts"),
        ({"example": {"id": "a", "question": "?", "gold": []}}, r"'gold' must be a mapping, not \[\]"),
        ({"example": {"id": "a", "messages": [{"content": "x"}]}}, "'messages', message 0: a message needs 'role'"),
    ],
)
def test_what_is_missing_in_a_row_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        example_of(row, "row 3")


class Task:
    name = "sums"
    version = "1"
    max_tokens = 8
    instruction = "Answer with a number."
    _examples = tuple(Example(id=str(i), question=f"{i}?", answer=str(i), rationale="so") for i in range(10))

    def examples(self, split: str) -> Sequence[Example]:
        return self._examples if split == "train" else ()

    def extract(self, text: str) -> str | None:
        return text

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


def test_drawn_by_the_seed_without_replacement() -> None:
    def ids(n: int, seed: int) -> list[str]:
        made = Questions(n=n)(Task(), ZeroShot(), [], seed=seed)
        assert made.counts == {"questions": 10, "not_drawn": 10 - len(made.rows), "rows": len(made.rows)}
        return [row["id"] for row in made.rows]

    assert ids(0, 0) == ids(0, 1) == [str(i) for i in range(10)]
    assert len(set(ids(6, 0))) == 6
    assert ids(6, 0) == ids(6, 0) != ids(6, 1)
    with pytest.raises(DataError, match="questions:n=11: the train split of sums has 10 examples"):
        ids(11, 0)


def sampled(scores: Sequence[Sequence[float]], first: int = 0) -> list[Sampled]:
    return [
        Sampled(
            example=Task._examples[first + i],
            texts=("",) * len(each), scores=tuple(each), finishes=("stop",) * len(each), answers=(None,) * len(each),
        )
        for i, each in enumerate(scores)
    ]  # fmt: skip


def test_chosen_by_the_share_of_right_samples() -> None:
    asked = sampled([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], []], first=2)
    made = Questions(lowest=0.25, highest=0.5)(Task(), ZeroShot(), asked, seed=0)
    assert [row["id"] for row in made.rows] == ["3", "4"]  # both bounds belong to it
    assert made.counts == {"questions": 10, "not_asked": 5, "too_hard": 1, "too_easy": 2, "not_drawn": 0, "rows": 2}
    everything = Questions()(Task(), ZeroShot(), asked, seed=0)
    assert [row["id"] for row in everything.rows] == ["2", "3", "4", "5", "6"]
    one = Questions(lowest=0.25, highest=0.5, n=1)(Task(), ZeroShot(), asked, seed=0)
    assert (one.counts["not_drawn"], len(one.rows)) == (1, 1)
    for settings, message in (
        ({"lowest": 0.3, "highest": 0.4}, "of 10 questions 5 were not asked, 2 below lowest=0.3 and 3 above highest=0.4"),
        ({"lowest": 0.2, "highest": 0.5, "n": 3}, "questions:n=3: the train split of sums has 2 questions left"),
        ({"split": "test"}, "asked no question of the test split of sums"),
    ):
        with pytest.raises(DataError, match=message):
            Questions(**settings)(Task(), ZeroShot(), asked, seed=0)  # type: ignore[arg-type]


def test_questions_of_another_split_with_the_same_ids_are_not_taken() -> None:
    asked = [replace(item, example=replace(item.example, question="another?")) for item in sampled([[1, 0]])]
    with pytest.raises(DataError, match="asked no question of the train split"):
        Questions()(Task(), ZeroShot(), asked, seed=0)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="n = -1"):
        Questions(n=-1)
    with pytest.raises(ConfigError, match=r"needs 0 <= lowest <= highest <= 1, not lowest=0\.6, highest=0\.5"):
        Questions(lowest=0.6, highest=0.5)
    with pytest.raises(ConfigError, match="name it with 'from'"):
        Questions(lowest=0.1)(Task(), ZeroShot(), [], seed=0)


def test_prompts_of_their_own_and_ones_that_begin_the_reply() -> None:
    own = Questions(prompt='instructed:text="Think."')(Task(), ZeroShot(), [], seed=0)
    assert "Think." in own.rows[0]["prompt"][-1]["content"]

    def opened(task: object, example: Example, *, seed: int) -> Prompt:
        assert example.answer is None, "a prompter must not see the answer"
        return Prompt(messages=(Message(role="user", content=example.question),), opening="<think>")

    assert Questions()(Task(), opened, [], seed=0).rows[0]["opening"] == "<think>"
    with pytest.raises(ConfigError, match="asks in two stages"):
        Questions(prompt="zero_shot_cot")(Task(), ZeroShot(), [], seed=0)


def test_rows_with_examples_pass_whole_or_say_what_is_wrong() -> None:
    rows = list(Questions(n=2)(Task(), ZeroShot(), [], seed=0).rows)
    assert rows_with_scores(rows, "rows") == rows
    with pytest.raises(DataError, match="rows, row 2: no 'example'"):
        rows_with_scores([rows[0], {"prompt": "?", "completion": "!"}], "rows")
    with pytest.raises(DataError, match="rows, row 1, 'prompt'"):
        rows_with_scores([{"example": rows[0]["example"]}], "rows")


def test_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 12), ("test", 2)):
        lines = [json.dumps({"question": f"{split} {i}?", "answer": str(i % 2)}) + "\n" for i in range(count)]
        Path(f"{split}.jsonl").write_text("".join(lines))
    task = {
        "name": "digits",
        "splits": {"train": "train.jsonl", "test": "test.jsonl"},
        "extract": "number",
        "grade": "number",
    }
    Path("task.yaml").write_text(yaml.safe_dump(task))
    stages = [
        {"name": "zero-shot", "lever": "prompting", "eval": {}},
        {"name": "samples", "eval": {"split": "train", "strategy": "sample:n=4,temperature=1.0"}},
        {"name": "asked", "data": {"maker": "questions:n=3"}},
        {"name": "middling", "data": {"maker": "questions:lowest=0.25,highest=0.75", "from": "samples"}},
        {"name": "both", "data": {"stages": ["asked", "middling"]}},
    ]
    values = {"name": "online", "model": "scripted:replies=2", "task": "task.yaml", "stages": stages}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    run_recipe(load_recipe(Path("recipe.yaml")), Path("recipe.yaml"), Path("out"), lambda shop, console: {})

    def rows(stage: str) -> list[dict[str, Any]]:
        (folder,) = Path("out").glob(f"??-{stage}")
        return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]

    (folder,) = Path("out").glob("??-middling")
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["too_hard"] + counts["too_easy"] + counts["rows"] == counts["questions"] == 12
    assert 0 < counts["rows"] < 12
    assert len(rows("asked")) == 3
    assert len(rows("both")) == 3 + counts["rows"]
    assert all(example_of(row).answer in ("0", "1") for row in rows("both"))
