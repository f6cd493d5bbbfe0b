"""Rollouts from every step, on scripted replies, and the labels that are made of them."""

import asyncio

import pytest

from posttrain.core.errors import DataError
from posttrain.core.protocols import Tools
from posttrain.core.types import Example, Message, Prompt, Sampled, Sampling
from posttrain.data.formats import normalise
from posttrain.data.shapes import Steps
from posttrain.engines.meter import Account, Metered
from posttrain.engines.scripted import ScriptedEngine
from posttrain.preference.rolled_steps import RolledSteps
from posttrain.test_time.step_rollouts import StepRollouts, cut

ASKED = Example(id="1", question="2 + 3 + 4?", answer="9")


class Task:
    name, version, instruction, max_tokens = "sums", "1", "", 64

    def extract(self, text):
        found = text.rsplit("=", 1)
        return found[1].strip() if len(found) == 2 else None

    def grade(self, example, answer):
        return float(answer == example.answer)


def prompter(task, example, *, seed):
    assert example.answer is None
    return Prompt(messages=(Message(role="user", content=example.question),))


def test_steps_with_what_was_written_up_to_them():
    assert cut("a\n\nb\nc", "\n") == [("a", "a\n"), ("b", "a\n\nb\n"), ("c", "a\n\nb\nc")]
    assert cut(" a \n", "\n") == [("a", " a \n")]
    assert cut("", "\n") == []
    assert cut("a; b; c", "; ")[1] == ("b", "a; b; ")


def reply(question, sample, seed):
    """Whole replies, the second with a wrong first step."""
    return ["2 + 3 = 5\n5 + 4 = 9", "2 + 3 = 6\n6 + 4 = 10"][sample % 2]


def run(strategy, engine):
    account = Account()
    tools = Tools(
        engine=Metered(engine, account, "policy"), extract=Task().extract, key=str, sampling=Sampling(max_tokens=64)
    )
    prompt = Prompt(messages=(Message(role="user", content=ASKED.question),))
    return asyncio.run(strategy(prompt, ASKED.public(), tools, seed=3)), account


def sampled(answer, finishes=None):
    texts = tuple(candidate.text for candidate in answer.candidates)
    answers = tuple(candidate.answer for candidate in answer.candidates)
    return Sampled(
        example=ASKED, texts=texts, answers=answers, scores=tuple(Task().grade(ASKED, a) for a in answers),
        finishes=tuple(finishes or ["stop"] * len(texts)), trace=answer.trace,
    )  # fmt: skip


def test_every_step_but_the_last_is_rolled_out_and_metered():
    answer, account = run(StepRollouts(n=2, k=3), ScriptedEngine(reply))
    assert answer.trace["steps"] == [["2 + 3 = 5", "5 + 4 = 9"], ["2 + 3 = 6", "6 + 4 = 10"]]
    assert [len(replies) for replies in answer.trace["rollouts"]] == [1, 1]
    assert all(len(answers) == 3 for replies in answer.trace["rollouts"] for answers in replies)
    assert account.by_role()["policy"].usage.calls == 3
    assert answer.answer == "9"


def test_labels_are_the_share_of_rollouts_that_come_out_right():
    answer, _ = run(StepRollouts(n=2, k=3), ScriptedEngine(reply))
    trace = {**answer.trace, "rollouts": [[["9", "9", "8"]], [["9", None, "10"]]]}
    item = sampled(answer)
    item = Sampled(
        **{name: getattr(item, name) for name in ("example", "texts", "scores", "finishes", "answers")}, trace=trace
    )
    made = RolledSteps()(Task(), prompter, [item], seed=0)
    assert [row["labels"] for row in made.rows] == [[2 / 3, 1.0], [1 / 3, 0.0]]
    hard = RolledSteps(estimate="hard")(Task(), prompter, [item], seed=0)
    assert [row["labels"] for row in hard.rows] == [[1.0, 1.0], [1.0, 0.0]]
    assert made.counts["rows"] == made.counts["replies"] == 2
    normal = normalise(made.rows[0])
    assert isinstance(normal, Steps)
    assert normal.labels == (2 / 3, 1.0)


def test_what_cannot_be_labelled_is_left_out_and_counted():
    answer, _ = run(StepRollouts(n=4, k=1), ScriptedEngine(reply))
    made = RolledSteps()(Task(), prompter, [sampled(answer, ["stop", "length", "stop", "stop"])], seed=0)
    assert made.counts == {"questions": 1, "replies": 4, "cut": 1, "without_steps": 0, "repeated": 1, "rows": 2}
    spent = {**answer.trace, "rollouts": [[[]]] * 4}
    item = sampled(answer)
    item = Sampled(
        **{name: getattr(item, name) for name in ("example", "texts", "scores", "finishes", "answers")}, trace=spent
    )
    assert RolledSteps()(Task(), prompter, [item], seed=0).rows[0]["labels"] == [None, 1.0]
    with pytest.raises(DataError, match="no rows: of 4 replies 4 were cut by the token limit"):
        RolledSteps()(Task(), prompter, [sampled(answer, ["length"] * 4)], seed=0)
    plain = Sampled(example=ASKED, texts=("a",), scores=(1.0,), finishes=("stop",), answers=("a",))
    with pytest.raises(DataError, match="this evaluation made no rollouts: sample with strategy step_rollouts"):
        RolledSteps()(Task(), prompter, [plain], seed=0)
