"""Questions for online reinforcement learning in `data lint` and `data explain`: a shape of their own, nothing trained."""

from random import Random
from typing import Any

import pytest
from chat_families import BY_NAME

from posttrain.core.errors import DataError
from posttrain.core.types import Example, Message
from posttrain.data.chat import render_prompt
from posttrain.data.contamination import Question
from posttrain.data.examples import example_row
from posttrain.data.explain import counts, encode_row, explain
from posttrain.data.findings import Finding, Report
from posttrain.data.lint import lint, passes
from posttrain.data.question_rows import asks, read_question

CHATML = BY_NAME["chatml"].tokenizer
WORDS = "river stone cloud lamp paper glass wheel garden winter music bread silver forest letter window"
SHOTS = [
    {
        "role": "user",
        "content": "A shot: what follows from all that has been said so far, in one short word, if you please?",
    },
    {
        "role": "assistant",
        "content": "Nothing whatsoever follows from it, as far as anybody who was asked about it can tell.",
    },
]


def asked(i: int, **example: Any) -> dict[str, Any]:
    """A row as the data maker writes it."""
    text = " ".join(Random(i).sample(WORDS.split(), 11)) + f" {i}?"
    held = example_row(Example(id=str(i), question=text, **({"answer": str(i)} | example)))
    return {"id": str(i), "prompt": [*SHOTS, {"role": "user", "content": text}], "example": held}


def find(report: Report, check: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.check == check]
    return found


@pytest.mark.parametrize(
    ("row", "asking"),
    [
        (asked(1), True),
        ({"prompt": "hi", "answer": "ho"}, True),
        ({"id": "1", "prompt": "hi", "opening": "Well", "rewards": ["exact"]}, True),
        ({"prompt": "hi", "completion": "ho", "example": "of a greeting"}, False),
        ({"prompt": "hi", "chosen": "ho", "rejected": "no", "answer": "ho"}, False),
        ({"prompt": "hi {question}", "question": "hi", "answer": "ho"}, False),
        ({"prompt": "hi", "completoin": "ho"}, False),
        ({"question": "hi", "answer": "ho"}, False),
    ],
)
def test_what_is_a_question(row: dict[str, Any], asking: bool) -> None:
    assert asks(row) is asking


def test_good_questions_have_no_findings_whatever_their_prompts_share() -> None:
    report = lint([asked(i) for i in range(30)], "a", tokenizer=CHATML, context=4096)
    assert report.findings == []  # 30 words of shots are in every prompt: no near-duplicates, no lack of variety
    assert report.shapes == {"question": 30}
    assert report.duplicates == {"exact": 0, "near": 0, "near_groups": 0, "questions_with_several_answers": 0}
    assert report.labels is None
    assert report.diversity["distinct_1"] is None  # nobody has answered yet


def test_lengths_are_those_of_the_prompt_as_it_is_asked_and_leave_room_for_a_reply() -> None:
    rows = [asked(0), asked(1) | {"opening": "Let's think step by step."}, {"prompt": "two", "answer": "2"}]
    messages = [tuple(Message(**turn) for turn in row["prompt"]) for row in rows[:2]]
    tokens = [len(render_prompt(CHATML, m, opening=row.get("opening", ""))) for m, row in zip(messages, rows, strict=False)]
    assert tokens[1] > tokens[0]
    report = lint(rows, "a", tokenizer=CHATML, context=tokens[1])
    assert report.lengths["tokens per prompt"]["p50"] == tokens[0]
    assert report.lengths["tokens per prompt"]["max"] == report.lengths["tokens per prompt"]["context"] == tokens[1]
    assert not {"tokens per sequence", "trained tokens per sequence", "words per answer"} & report.lengths.keys()
    long = find(report, "too long")
    assert (long.level, long.rows) == ("error", (2,))
    assert long.message == f"no room for a reply: prompts of up to {tokens[1]} tokens in a context of {tokens[1]}"
    assert lint(rows, "a", tokenizer=CHATML, context=tokens[1] + 1).findings == []


def test_questions_without_gold_are_a_warning() -> None:
    rows = [
        asked(0),
        asked(1, answer=None),
        asked(2, answer=None, gold={"checks": ["a"]}),
        {"prompt": "What is it?"},
        {"prompt": "And what is that?", "answer": "a stone"},
        asked(5, answer=None) | {"answer": "read by no trainer beside an example"},
    ]
    found = find(lint(rows, "a"), "no gold")
    assert (found.level, found.rows) == ("warning", (2, 4, 6))
    assert "only rewards that need none can score" in found.message


def test_copies_near_copies_and_contradicting_answers() -> None:
    rows = [asked(0), asked(1), asked(0), asked(1, answer="another"), asked(0)]
    rows[4]["prompt"] = [{"role": "user", "content": "Please! " + rows[0]["example"]["question"]}]
    report = lint(rows, "a")
    assert find(report, "duplicates").rows == (3, 4)
    assert find(report, "near-duplicates").rows == (5,)  # asked in other words, the same question
    assert report.duplicates == {"exact": 2, "near": 1, "near_groups": 1, "questions_with_several_answers": 1}


def test_questions_of_an_evaluation_inside_are_an_error() -> None:
    rows = [asked(i) for i in range(6)]
    report = lint(rows, "a", against={"exam": [Question(id="e", text=rows[3]["example"]["question"])]})
    assert find(report, "contamination").rows == (4,)


def test_questions_beside_rows_with_answers_are_an_error() -> None:
    rows = [asked(0), {"prompt": "hi", "completion": "ho"}, asked(1), asked(2)]
    found = find(lint(rows, "a"), "mixed shapes")
    assert (found.level, found.rows) == ("error", (2,))
    assert found.message == "questions and rows with answers in one set: no trainer learns from both"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked(1) | {"example": "x"}, "row 1: no 'example' with what grading needs"),
        (asked(1) | {"opening": 1}, "row 1, 'opening': must be a text, how the reply begins: 1"),
        (asked(1) | {"rewards": "exact"}, "row 1, 'rewards': must be a list of names of rewards: \"exact\""),
        (asked(1) | {"prompt": SHOTS}, "row 1, 'prompt': a prompt must not end with the assistant's turn"),
    ],
)
def test_a_broken_question_is_told(row: dict[str, Any], message: str) -> None:
    found = find(lint([row], "a"), "shape")
    assert (found.level, found.rows) == ("error", (1,))
    assert message in found.message
    with pytest.raises(DataError, match=r"^row"):
        explain(CHATML, row)


def test_every_row_is_passed_as_often_as_the_bar_says() -> None:
    called = []
    rows = [asked(0), asked(0), {"x": 1}]
    lint(rows, "a", tokenizer=CHATML, advance=lambda: called.append(1))
    assert len(called) == len(rows) * passes(encoded=True, evaluations=0)


def test_explain_shows_the_prompt_and_nothing_of_it_is_trained() -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}], "opening": "Well, ", "example": {"id": "1", "question": "hi"}}
    assert explain(CHATML, row) == [("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nWell, ", False)]
    assert counts(encode_row(CHATML, row))["trained"] == 0


def test_a_column_of_system_texts_begins_the_prompt():
    row = {"prompt": "hi", "system": "Be brief.", "answer": "hello"}
    assert asks(row)
    assert [(m.role, m.content) for m in read_question(row).prompt] == [("system", "Be brief."), ("user", "hi")]
    with pytest.raises(DataError, match="but the first message is another system message"):
        read_question({**row, "prompt": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "hi"}]})
