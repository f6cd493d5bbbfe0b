"""The tasks that ship with the package, on rows of the shapes of their published files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError, PosttrainError
from posttrain.core.specs import build
from posttrain.core.types import Example
from posttrain.finetuning.worked_examples import WorkedExamples
from posttrain.prompting.few_shot import FewShot
from posttrain.prompting.zero_shot import ZeroShot
from posttrain.tasks import list_tasks, load_task
from posttrain.tasks.extraction import extractor
from posttrain.tasks.user import BENCHMARKS

ROWS: dict[str, list[dict[str, Any]]] = {
    "mawps": [
        {"id": "a-1", "question": "Ann has 70 shells . She gave away 43 . How many are left ? ", "answer": "27"},
        {"id": "a-2", "question": "Half of 5?", "answer": "2.5", "rationale": "X = 5 / 2"},
    ],
    "svamp": [{"id": "s-1", "question": "76 less 25?", "answer": "51", "rationale": "( 76.0 - 25.0 )"}],
    "aqua": [
        {"id": "q-0", "question": "540 km an hour?", "answer": "C", "choices": ["A)60", "B)54", "C)9", "D)6", "E)1"],
         "rationale": "540 / 60 = 9\nCorrect answer - C"},
    ],
    "mmlu": [
        {"id": "m-0", "subject": "anatomy", "question": "Bones?", "choices": ["0", "27", "2", "6"], "answer": "B"},
        {"id": "m-1", "subject": "virology", "question": "Is it alive?", "choices": ["a", "b", "c", "d"], "answer": "D"},
    ],
    "medqa": [
        {"id": "u-0", "question": "What next?", "choices": {"A": "Wait", "B": "Tell", "C": "Ask", "D": "Run", "E": "Hide"},
         "answer": "B", "answer_text": "Tell"},
    ],
    "strategyqa": [
        {"id": "y-0", "question": "Could a cat outlive a tortoise?", "answer": "no", "rationale": "Cats live 15 years.",
         "facts": ["Cats live 15 years."]},
    ],
    "pubmedqa": [
        {"id": "1", "question": "Does it help?", "context": ["We tried.", "It did."], "choices": ["yes", "no", "maybe"],
         "answer": "yes", "rationale": "It helps.", "split": "test"},
        {"id": "2", "question": "Is it safe?", "context": ["Unclear."], "choices": ["yes", "no", "maybe"],
         "answer": "maybe", "rationale": "More is needed.", "split": "train"},
    ],
    "conclusions": [
        {"id": "k-0", "context": ["We asked.", "They said no."], "rationale": "They do not want it.", "split": "test"},
        {"id": "k-1", "context": ["We looked."], "rationale": "It was there.", "split": "train"},
    ],
    "dialogue": [
        {"id": f"d-{i}", "messages": [
            {"role": "user", "content": f"Have you seen part {i}?"}, {"role": "assistant", "content": "Yes, twice."},
            {"role": "user", "content": "And?"}, {"role": "assistant", "content": "I liked it."},
            {"role": "user", "content": "So did I."},
        ]} for i in range(40)
    ],
    "requests": [
        {"id": "r-0", "instruction": "Shorten the sentence.", "input": "It is, as it were, late.", "output": "It is late."},
        {"id": "r-1", "instruction": "Name a colour.", "input": "", "output": "Red."},
    ],
    "bbh": [
        {"id": "b-0", "task": "navigate", "question": "Do you return?\nOptions:\n- Yes\n- No", "answer": "No"},
        {"id": "b-1", "task": "snarks", "question": "Which is it?\nOptions:\n(A) one\n(B) two", "answer": "(B)"},
        {"id": "b-2", "task": "boolean_expressions", "question": "not ( True ) is", "answer": "False"},
        {"id": "b-3", "task": "formal_fallacies", "question": "Is it?", "answer": "valid"},
        {"id": "b-4", "task": "object_counting", "question": "How many?", "answer": "13"},
        {"id": "b-5", "task": "word_sorting", "question": "Sort: b a", "answer": "ape bee"},
    ],
}  # fmt: skip

REPLIES: dict[str, tuple[str, str]] = {  # by example: a right reply and a wrong one
    "a-1": ("70 - 43 = 27\nAnswer: 27", "27 of 70, so 43"),
    "a-2": ("Answer: 2.50", "Answer: 2"),
    "s-1": ("She pays 51", "Answer: 50"),
    "q-0": ("It is 9.\nAnswer: C", "Answer: (A) 60"),
    "m-0": ("B", "Answer: 6"),
    "m-1": ("The answer is D.", "The answer is a."),
    "u-0": ("**Answer:** (B) Tell", "Answer: A"),
    "y-0": ("Answer: No, it could not.", "Yes, it could."),
    "1": ("It did.\nAnswer: Yes", "No."),
    "2": ("Answer: maybe.", "Answer: yes"),
    "k-0": ("They do not want it.", "They want it."),
    "k-1": ("It was there.", "It was not there."),
    **{f"d-{i}": ("I liked it.", "Yes, twice.") for i in range(40)},
    "r-0": ("It is late.", "It was late."),
    "r-1": ("red", "Reddish."),
    "b-0": ("Answer: no", "Answer: Yes"),
    "b-1": ("(B)", "Answer: (A) one"),
    "b-2": ("So it is so.\nAnswer: false.", "True"),
    "b-3": ("Answer: valid", "Answer: invalid"),
    "b-4": ("Answer: 13", "Answer: 3"),
    "b-5": ("Answer: ape bee", "Answer: bee ape"),
}


def load(name: str, folder: Path, ref: str | None = None) -> Any:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    return load_task(ref or name, data=path)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_benchmark_asks_reads_and_grades(name: str, tmp_path: Path) -> None:
    task = load(name, tmp_path)
    splits = ("train", "test") if name in ("conclusions", "dialogue", "pubmedqa") else ("test",)
    examples: list[Example] = [example for split in splits for example in task.examples(split)]
    assert sorted(example.id for example in examples) == sorted(row["id"] for row in ROWS[name])
    for example in examples:
        right, wrong = REPLIES[example.id]
        assert task.grade(example, task.extract(right)) == 1.0, (right, task.extract(right))
        assert task.grade(example, task.extract(wrong)) == 0.0, (wrong, task.extract(wrong))
        shown = build("zero_shot", "posttrain.prompting", "prompter")(task, example.public(), seed=0).messages[-1].content
        assert shown.endswith(task.instruction)
        assert all(choice in shown for choice in example.choices)
        asked = {"a": task.extract(right), "b": task.extract("I cannot say, there is much to weigh.\nSo much.")}
        assert (asked["b"] is None) == bool(task.instruction)  # without one the whole reply is the answer
        assert task.key(str(asked["a"])) == task.key(str(example.answer)) or example.id == "a-2"


def test_every_file_is_tested_and_listed() -> None:
    names = {path.stem for path in BENCHMARKS.glob("*.yaml")}
    assert names == set(ROWS)
    assert names | {"gsm8k", "ifeval"} <= dict(list_tasks()).keys()


def test_a_request_is_its_instruction_with_its_input(tmp_path: Path) -> None:
    with_input, alone = (task := load("requests", tmp_path)).examples("test")
    assert with_input.question == "Shorten the sentence.\n\nIt is, as it were, late."
    assert alone.question == "Name a colour."
    assert task.instruction == ""


def test_a_conversation_is_answered_by_the_assistants_last_turn(tmp_path: Path) -> None:
    task = load("dialogue", tmp_path)
    examples = [*task.examples("train"), *task.examples("test")]
    assert 0 < len(task.examples("test")) < 20, "a fifth of 40 is held out, by hash"
    example = next(e for e in examples if e.id == "d-7")
    assert [turn.content for turn in example.messages] == ["Have you seen part 7?", "Yes, twice.", "And?"]
    assert (example.question, example.answer) == ("", "I liked it.")
    assert {e.id for e in examples} == {row["id"] for row in ROWS["dialogue"]}
    made = WorkedExamples(n=1, steps=False)(task, ZeroShot(), (), seed=0).rows[0]
    assert made["completion"] == "I liked it.", "a reply, not an answer in a form that nobody asked for"
    assert made["prompt"][1] == {"role": "assistant", "content": "Yes, twice."}
    shown = FewShot(k=1, style="text")(task, example.public(), seed=0)
    assert re.search(
        r"^Question: User: Have you seen part \d+\?\n\nAssistant: Yes, twice\.\n\nUser: And\?\nI liked it\.\n\n",
        shown.messages[-1].content,
    ), "the shot's whole conversation, and its reply as it is"


def test_what_is_held_out_does_not_depend_on_other_rows(tmp_path: Path) -> None:
    whole = {e.id for e in load("dialogue", tmp_path).examples("test")}
    path = tmp_path / "some.jsonl"
    again = [*ROWS["dialogue"][10:], {**ROWS["dialogue"][12], "id": "again"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in again), encoding="utf-8")
    task = load_task("dialogue", data=path)
    kept = {e.id for e in task.examples("test")}
    assert kept - {"again"} == {i for i in whole if int(i[2:]) >= 10}
    assert ("again" in kept) == ("d-12" in kept), "rows that ask the same are on one side"
    given = load_task("dialogue", data=f"train={path},test={path}")
    assert len(given.examples("train")) == len(given.examples("test")) == len(again), "splits that are given stay"
    (split := tmp_path / "split").mkdir()
    path.rename(split / "test.jsonl")
    assert len(load_task("dialogue", data=split).examples("test")) == len(again), "and so does a folder's"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", "a list of turns with 'role' and 'content' is needed"),
        ([{"role": "bot", "content": "Hello"}], "a turn has the role 'bot': use system, user, assistant, tool"),
        ([{"role": "assistant", "content": "Hello"}], "no reply of the assistant to a user: remove the row"),
        ([{"role": "user", "content": "Hello"}], "no reply of the assistant to a user: remove the row"),
    ],
)
def test_a_conversation_without_a_reply_is_said(messages: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "x", "messages": messages}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"task 'dialogue', row 1: .*{said}"):
        load_task("dialogue", data=f"test={path}").examples("test")


def test_context_choices_and_instruction_are_shown(tmp_path: Path) -> None:
    (example,) = (task := load("pubmedqa", tmp_path)).examples("test")
    assert example.question == "We tried.\nIt did.\n\nQuestion: Does it help?"
    assert task.instruction == 'Finish with a line "Answer: " followed by yes, no or maybe.'
    assert example.rationale == "It helps.\nAnswer: yes"
    (train,) = task.examples("train")
    assert train.id == "2"
    assert not task.examples("validation")


def test_some_of_the_rows_by_a_column(tmp_path: Path) -> None:
    some = load("bbh", tmp_path, "bbh:task=[navigate,snarks]")
    assert [example.id for example in some.examples("test")] == ["b-0", "b-1"]
    assert some.name == "bbh:task=[navigate,snarks]"
    assert [e.id for e in load("mmlu", tmp_path, "mmlu:subject=virology").examples("test")] == ["m-1"]
    with pytest.raises(DataError, match=r"task 'mmlu': no row has a column 'subjekt'; did you mean 'subject'"):
        load("mmlu", tmp_path, "mmlu:subjekt=virology").examples("test")


def test_a_benchmark_without_rows_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="task 'mmlu': say where its rows are with --data"):
        load_task("mmlu")
    with pytest.raises(PosttrainError, match=r"choose .*bbh.*or the path"):
        load_task("mmluu")


def test_labels_are_read_where_an_answer_begins_with_one() -> None:
    read = extractor("label", labels=("yes", "no", "(A)"))
    told = {"Yes.": "yes", "Answer: NO way": "no", "none": None, "A dog": None, "a) dog": "(A)", "Well, yes": None,
            "Answer: perhaps\nAnswer: no\nAnswer:": "no", "<think>yes</think>no": "no", "<think>yes": None}  # fmt: skip
    assert {text: read(text) for text in told} == told
    lenient = extractor("line", labels=("yes",))
    assert [lenient(text) for text in ("Answer: yes, so", "Answer: 7", "7", "a\nb")] == ["yes", "7", "7", None]


def test_labels_belong_to_label_and_line(tmp_path: Path) -> None:
    for extra in ("extract: label", "extract: number\nlabels: [a]"):
        (tmp_path / "task.yaml").write_text(f"name: t\ndata: x.jsonl\n{extra}\n")
        with pytest.raises(ConfigError, match="'extract: label' needs 'labels'"):
            load_task(str(tmp_path / "task.yaml"))
