from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.core.types import Message
from posttrain.data.formats import Conversation, Demonstration, Plain, Preference, normalise, normalise_rows, training_rows

USER, GOOD, BAD = Message(role="user", content="hi"), Message(role="assistant", content="ho"), "no"
ASKED, ANSWERED = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
REJECTED = {"role": "assistant", "content": "no"}
CONVERSATION = Conversation(messages=(USER, GOOD))
DEMONSTRATION = Demonstration(prompt=(USER,), completion="ho")
PREFERENCE = Preference(prompt=(USER,), chosen="ho", rejected="no")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, ANSWERED], "id": 7}, CONVERSATION),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, CONVERSATION),
        ({"conversation": [{"role": "User", "content": [{"type": "text", "text": "hi"}]}, ANSWERED]}, CONVERSATION),
        ({"prompt": "hi", "completion": "ho"}, DEMONSTRATION),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, DEMONSTRATION),
        ({"prompt": "hi", "response": "ho"}, DEMONSTRATION),
        ({"question": "hi", "answer": "ho"}, DEMONSTRATION),
        ({"instruction": "hi", "input": "", "output": "ho"}, DEMONSTRATION),
        ({"text": "Once upon a time", "source": "book"}, Plain(text="Once upon a time")),
        ({"text": "rendered elsewhere", "messages": [ASKED, ANSWERED]}, CONVERSATION),
        ({"prompt": "hi", "chosen": "ho", "rejected": "no"}, PREFERENCE),
        ({"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [REJECTED]}, PREFERENCE),
        ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED, REJECTED]}, PREFERENCE),
        ({"prompt": "hi", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, REJECTED], "score_chosen": 9.0}, PREFERENCE),
    ],
)
def test_recognised(row: dict[str, Any], expected: Any) -> None:
    assert normalise(row) == expected


def test_alpaca_puts_the_input_after_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "2 3", "output": "5", "system": "Be exact."}
    system, user = Message(role="system", content="Be exact."), Message(role="user", content="Add.\n\n2 3")
    assert normalise(row) == Demonstration(prompt=(system, user), completion="5")


def test_a_system_column_begins_the_turns() -> None:
    system = Message(role="system", content="Be exact.")
    told = {"system": "Be exact."}
    assert normalise({"conversations": [ASKED, ANSWERED], **told}) == Conversation(messages=(system, USER, GOOD))
    assert normalise({"question": "hi", "answer": "ho", **told}) == Demonstration(prompt=(system, USER), completion="ho")
    preference = normalise({"prompt": "hi", "chosen": "ho", "rejected": "no", **told})
    assert preference == Preference(prompt=(system, USER), chosen="ho", rejected="no")
    assert normalise({"messages": [ASKED, ANSWERED], "system": ""}) == CONVERSATION
    same = {"role": "system", "content": "Be exact."}
    assert normalise({"messages": [same, ASKED, ANSWERED], **told}) == Conversation(messages=(system, USER, GOOD))
    with pytest.raises(DataError, match=r"'system' is \"Be kind\.\", but the first message is another system message"):
        normalise({"messages": [same, ASKED, ANSWERED], "system": "Be kind."})


def test_alpaca_history_comes_before_the_instruction() -> None:
    row = {"instruction": "and", "input": "", "output": "so", "history": [["hi", "ho"]]}
    assert normalise(row) == Demonstration(prompt=(USER, GOOD, Message(role="user", content="and")), completion="so")
    with pytest.raises(DataError, match="'history': must be a list of"):
        normalise({**row, "history": ["hi"]})


def test_an_implicit_prompt_may_be_many_turns() -> None:
    again = {"role": "user", "content": "again"}
    row = {"chosen": [ASKED, ANSWERED, again, ANSWERED], "rejected": [ASKED, ANSWERED, again, REJECTED]}
    expected = Preference(prompt=(USER, GOOD, Message(role="user", content="again")), chosen="ho", rejected="no")
    assert normalise(row) == expected


def test_saying_nothing_may_be_the_worse_answer_but_not_the_better() -> None:
    assert normalise({"prompt": "hi", "chosen": "ho", "rejected": ""}) == Preference(
        prompt=(USER,), chosen="ho", rejected=""
    )
    with pytest.raises(DataError, match="'chosen': is empty"):
        normalise({"prompt": "hi", "chosen": "", "rejected": "no"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": "a", "bar": 3}, r'row: not a shape that is known: {"foo": "a", "bar": 3}\nthe shapes are\n  {"messages"'),
        ({"text": "Once upon a time", "label": 1}, "'text' beside 'label': as plain text the label would never be learned"),
        ({"text": " "}, "'text': is empty"),
        ({"text": ["a"]}, "'text': must be a text"),
        ({"messages": [ASKED]}, "no assistant turn"),
        ({"messages": "hi"}, "must be a text or a list of messages"),
        ({"messages": []}, "must be a text or a list of messages"),
        (
            {"messages": [{"role": "asistant", "content": "x"}]},
            "message 0: unknown role 'asistant'; did you mean 'assistant'",
        ),
        ({"messages": [{"content": "x"}]}, "message 0: a message needs 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "message 0: 'content' must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text can be trained on"),
        ({"messages": [ASKED, {**ANSWERED, "tool_calls": [{}]}]}, "message 1: tool calls as objects are not supported"),
        ({"prompt": "", "completion": "x"}, "'prompt': is empty"),
        ({"prompt": "x", "completion": " \n"}, "'completion': is empty"),
        ({"prompt": [ASKED, ANSWERED], "completion": "x"}, "must not end with the assistant's turn"),
        ({"prompt": "x", "completion": [ANSWERED, ANSWERED]}, "must be a text or one assistant message"),
        ({"chosen": "a", "rejected": "b"}, "no 'prompt', and 'chosen' and 'rejected' are not whole conversations"),
        ({"chosen": [ASKED, ANSWERED], "rejected": "no"}, "one of 'chosen' and 'rejected' is a whole conversation"),
        ({"chosen": [ASKED, ANSWERED], "rejected": [{**ASKED, "content": "yo"}, REJECTED]}, "must be the same conversation"),
        (
            {"prompt": "elsewhere", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, REJECTED]},
            "not what 'chosen' begins with",
        ),
    ],
)
def test_refused_with_the_reason(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        normalise(row)


def test_rows_of_one_kind() -> None:
    rows = [{"prompt": "hi", "completion": "ho"}, {"messages": [ASKED, ANSWERED]}]
    assert normalise_rows(rows, "a.jsonl", Conversation, Demonstration) == [DEMONSTRATION, CONVERSATION]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: is a conversation, but a demonstration is needed"):
        normalise_rows(rows, "a.jsonl", Demonstration)
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: is a demonstration, but a preference is needed"):
        normalise_rows(rows, "a.jsonl", Preference)
    with pytest.raises(DataError, match=r"a\.jsonl, row 1, 'prompt': is empty"):
        normalise_rows([{"prompt": "", "completion": "ho"}], "a.jsonl", Demonstration)


def test_training_rows_are_in_the_shapes_of_trainers() -> None:
    rows = [{"conversation": [ASKED, ANSWERED]}, {"question": "hi", "answer": "ho"}, {"text": "so", "id": 3}]
    rows.append({"chosen": [ASKED, ANSWERED], "rejected": [ASKED, REJECTED]})
    made = training_rows(rows, "a.jsonl")
    assert made == [
        {"messages": [ASKED, ANSWERED]},
        {"prompt": [ASKED], "completion": "ho"},
        {"text": "so"},
        {"prompt": [ASKED], "chosen": "ho", "rejected": "no"},
    ]
    assert [normalise(row) for row in made] == [CONVERSATION, DEMONSTRATION, Plain(text="so"), PREFERENCE]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: not a shape"):
        training_rows([*rows[:1], {"x": 1}], "a.jsonl")
