"""Tasks over rows: GSM8K and tasks of one's own in YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError, PosttrainError
from posttrain.core.specs import build
from posttrain.tasks import load_task
from posttrain.tasks.gsm8k import SHOTS
from posttrain.verifiers.rule import equations

ROWS = [
    {"id": "0", "question": "3 eggs and 4 eggs?", "answer": "7", "rationale": "3 + 4 = <<3+4=7>>7 eggs.\n#### 7"},
    {"id": "1", "question": "A thousand more?", "answer": "1,007", "rationale": "So  7 + 1000 = 1,007.\n#### 1,007"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_gsm8k_from_a_file(tmp_path: Path) -> None:
    task = load_task("gsm8k", data=write(tmp_path / "test.jsonl", ROWS))
    first, second = task.examples("test")
    assert first.rationale == "3 + 4 = 7 eggs.\nAnswer: 7"  # neither <<…>> nor ####
    assert second.rationale == "So 7 + 1000 = 1,007.\nAnswer: 1,007"
    for text in ("Answer: 1007", "It is $1,007.00", "#### 1007", "\\boxed{1007}", "The answer is 1007 eggs."):
        assert task.grade(second, task.extract(text)) == 1.0
    assert task.grade(second, "1008") == task.grade(second, None) == 0.0
    assert task.key("1,007") == task.key("1007.0")
    assert "<<" not in "".join(str(example.rationale) for example in task.examples("train"))


def test_gsm8k_in_the_original_form(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    (example,) = load_task("gsm8k", data=write(tmp_path / "test.jsonl", [row])).examples("test")
    assert (example.answer, example.rationale) == ("7", "3 + 4 = 7\nAnswer: 7")


def test_gsm8k_shots_never_come_from_the_evaluated_file(tmp_path: Path) -> None:
    task = load_task("gsm8k", data=write(tmp_path / "test.jsonl", ROWS))
    assert len(task.examples("train")) == len(SHOTS) == 8
    prompt = build("few_shot_cot:k=8", "posttrain.prompting", "prompter")(task, task.examples("test")[0].public(), seed=0)
    shown = [message.content for message in prompt.messages[:-1]]
    assert not any("eggs" in text for text in shown)
    with pytest.raises(ConfigError, match="only 8 usable"):
        build("few_shot:k=9", "posttrain.prompting", "prompter")(task, task.examples("test")[0].public(), seed=0)


def test_built_in_shots_are_right() -> None:
    for shot in SHOTS:
        checked = equations(shot["rationale"])
        assert checked
        assert all(checked), shot
        assert shot["answer"] in shot["rationale"].splitlines()[-1] or shot["answer"] == "120"


def test_gsm8k_from_a_folder_and_from_named_files(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_test.jsonl", ROWS)
    write(tmp_path / "gsm8k_train.jsonl", [{**row, "question": row["question"] + " Then?"} for row in ROWS])
    write(tmp_path / "other_train.jsonl", ROWS)
    folder = load_task("gsm8k", data=tmp_path)
    named = load_task("gsm8k", data=f"train={tmp_path}/gsm8k_train.jsonl,test={tmp_path}/gsm8k_test.jsonl")
    for task in (folder, named):
        assert [e.question for e in task.examples("train")] == ["3 eggs and 4 eggs? Then?", "A thousand more? Then?"]
    assert folder.version == named.version
    assert folder.version != load_task("gsm8k", data=tmp_path / "gsm8k_test.jsonl").version


def test_ids_do_not_depend_on_order_or_limit(tmp_path: Path) -> None:
    one = load_task("gsm8k", data=write(tmp_path / "a.jsonl", ROWS)).examples("test")
    two = load_task("gsm8k", data=write(tmp_path / "b.jsonl", ROWS[::-1])).examples("test")
    assert {e.id: e for e in one} == {e.id: e for e in two}


def task_file(folder: Path, text: str, rows: list[dict[str, Any]] | None = None) -> str:
    if rows is not None:
        write(folder / "rows.jsonl", rows)
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return str(folder / "task.yaml")


CHOICE = """
name: capitals
splits: {test: rows.jsonl}
question: "{place}: what is its capital?"
choices: options
answer: right
extract: choice
grade: choice
max_tokens: 8
"""


@pytest.mark.parametrize("right", ["B", "b", "Rome", 1])
def test_a_task_of_choices(tmp_path: Path, right: str | int) -> None:
    row = {"place": "Italy", "options": ["A) Milan", "B) Rome", "C) Turin"], "right": right}
    task = load_task(task_file(tmp_path, CHOICE, [row]))
    (example,) = task.examples("test")
    assert example.choices == ("Milan", "Rome", "Turin")
    assert example.answer == "B"
    prompt = build("zero_shot", "posttrain.prompting", "prompter")(task, example.public(), seed=0)
    assert prompt.messages[0].content.startswith("Italy: what is its capital?\n\nA) Milan\nB) Rome\nC) Turin\n\nFinish with")
    assert task.grade(example, task.extract("Answer: (b)")) == 1.0
    assert task.grade(example, task.extract("Answer: C")) == 0.0
    assert task.extract("Answer: I think it is B") == "B"
    assert task.max_tokens == 8


def test_grades(tmp_path: Path) -> None:
    def grade(settings: str, gold: str, text: str) -> float:
        task = load_task(task_file(tmp_path, "name: t\ndata: rows.jsonl\n" + settings, [{"question": "q", "answer": gold}]))
        (example,) = task.examples("test")
        return task.grade(example, task.extract(text))

    assert grade("grade: exact", "New York", "Answer: new  york.") == 1.0
    assert grade("grade: exact", "New York", "Answer: York") == 0.0
    assert grade("extract: number\ngrade: number", "1,000", "about 1000.00 in all") == 1.0
    assert grade("extract: boxed\ngrade: maths", "\\frac{x}{2}", "so \\boxed{0.5x}") == 1.0
    assert grade("extract: {regex: 'label=(\\w+)'}\ngrade: exact", "spam", "label=ham label=spam") == 1.0
    assert grade("extract: last_line\ngrade: exact", "yes", "well\nyes") == 1.0
    assert grade("extract: text\ngrade: exact", "yes", "well, yes") == 0.0


def test_formats_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,answer\n"2+2, or so?",4\n', encoding="utf-8")
    text = "name: t\ndata: rows.csv\nextract: number\ngrade: number\ninstruction: ''\n"
    task = load_task(task_file(tmp_path, text))
    assert [(e.question, e.answer) for e in task.examples("test")] == [("2+2, or so?", "4")]
    assert task.instruction == ""
    other = write(tmp_path / "other.jsonl", [{"question": "3+3?", "answer": 6}])
    assert load_task(task_file(tmp_path, text), data=other).examples("test")[0].answer == "6"
    with pytest.raises(ConfigError, match=r"task 't' has no split 'train' .it has: test.*--data train=FILE,test=FILE"):
        task.examples("train")


@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        ("name: t\ndata: rows.jsonl\nqestion: q", {}, r"task\.yaml: unknown key 'qestion'; did you mean 'question'\?"),
        ("data: rows.jsonl", {}, r"'name' is missing"),
        ("name: t", {}, r"say where the rows are"),
        ("name: t\ndata: a\nsplits: {test: b}", {}, r"either 'data' or 'splits'"),
        ("name: t\ndata: a\nsplit: part\ntest_share: 0.2", {}, r"leave out 'split' and 'splits'"),
        ("name: t\ndata: a\nmessages: chat\nanswer: a", {}, r"either 'messages'.* or 'question' and 'answer', not both"),
        ("name: t\ndata: rows.jsonl\ngrade: choice", {}, r"'extract: choice' and 'grade: choice' belong together"),
        (
            "name: t\ndata: rows.jsonl\nanswer: gold",
            {"question": "q", "answer": "a"},
            r"row 1: no column 'gold'; the columns are: question, answer",
        ),
        (
            "name: t\ndata: rows.jsonl\nquestion: '{body} {q}'",
            {"body": "q", "answer": "a"},
            r"row 1: no column 'q'; the columns are: body",
        ),
        ("name: t\ndata: rows.jsonl", {"question": "q", "answer": None}, r"row 1: column 'answer' is empty"),
        (
            "name: t\ndata: rows.jsonl\nextract: number\ngrade: number",
            {"question": "q", "answer": "many"},
            r"'many' is not a number",
        ),
        ("name: t\ndata: missing.jsonl", {}, r"no such data file: .*missing\.jsonl"),
        ("name: t\nsplits: {tst: rows.jsonl}", {}, r"did you mean 'test'"),
        ("name: t\ndata: rows.jsonl\nextract: {regex: '('}", {}, r"not a regular expression"),
        (
            "name: t\ndata: rows.jsonl\nchoices: c\nextract: choice\ngrade: choice",
            {"question": "q", "answer": "F", "c": ["x", "y"]},
            r"'F' is no letter",
        ),
    ],
)
def test_user_errors(tmp_path: Path, text: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(PosttrainError, match=message) as caught:
        load_task(task_file(tmp_path, text, [row])).examples("test")
    assert "\n" not in str(caught.value)


def test_a_question_of_several_columns_and_paragraphs(tmp_path: Path) -> None:
    row = {"context": ["One.", "Two."], "q": "Which?", "answer": "a"}
    task = load_task(task_file(tmp_path, "name: t\ndata: rows.jsonl\nquestion: '{context} {q}'\n", [row]))
    assert task.examples("test")[0].question == "One.\nTwo. Which?"


def test_rows_with_the_same_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "name: t\ndata: rows.jsonl\nid: id\n"
    same = {"id": 1, "question": "q", "answer": "a"}
    assert len(load_task(task_file(tmp_path, text, [same, same])).examples("test")) == 1
    assert "1 repeated rows left out" in caplog.text
    with pytest.raises(DataError, match="two different rows have the id '1'"):
        load_task(task_file(tmp_path, text, [same, {**same, "answer": "b"}])).examples("test")


def test_folder_without_splits_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test\.jsonl or gsm8k_test\.jsonl"):
        load_task("gsm8k", data=tmp_path)
    with pytest.raises(ConfigError, match="unknown split 'dev' in data"):
        load_task("gsm8k", data="dev=x.jsonl")
