"""Prompters: shots never leak the evaluated question, and never depend on anything but seed, task and example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from posttrain.core.errors import ConfigError
from posttrain.core.specs import available, build, lookup
from posttrain.core.types import Example, Message, Prompt
from posttrain.tasks import load_task
from posttrain.tasks.equivalence import answer_key

PROMPTERS = "posttrain.prompting"


@dataclass
class Words:
    """A task with given training questions."""

    train: Sequence[str]
    name: str = "words"
    version: str = "1"
    max_tokens: int = 20
    instruction: str = "Reply with the answer."
    asked: list[str] = field(default_factory=list)

    def examples(self, split: str) -> Sequence[Example]:
        self.asked.append(split)
        return [
            Example(id=f"t{i}", question=q, answer=str(i), rationale=f"because\nAnswer: {i}")
            for i, q in enumerate(self.train)
        ]

    def extract(self, text: str) -> str | None:
        return text or None

    def key(self, answer: str) -> str:
        return answer_key(answer)

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


def prompter(spec: str):
    return build(spec, PROMPTERS, "prompter")


def shown(prompt: Prompt) -> list[str]:
    """The shots' questions."""
    users = [message.content for message in prompt.messages if message.role == "user"]
    return [text.split("\n\n")[0] for text in users[:-1]]


def test_zero_shot() -> None:
    task = Words(["a"])
    example = Example(id="e", question="Two and two?", choices=("three", "four"))
    prompt = prompter("zero_shot")(task, example, seed=0)
    assert prompt == Prompt(
        messages=(Message(role="user", content="Two and two?\n\nA) three\nB) four\n\nReply with the answer."),)
    )
    assert prompter('zero_shot:system="Be brief."')(task, example, seed=0).messages[0] == Message(
        role="system", content="Be brief."
    )


def test_zero_shot_keeps_a_conversation() -> None:
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="2+2?"),
    )
    prompt = prompter("zero_shot")(Words(["a"]), Example(id="e", messages=turns), seed=0)
    assert prompt.messages[:2] == turns[:2]
    assert prompt.messages[2].content == "2+2?\n\nReply with the answer."


def test_zero_shot_cot_opens_the_turn_and_cues_the_answer() -> None:
    prompt = prompter("zero_shot_cot")(Words(["a"]), Example(id="e", question="Q"), seed=0)
    assert prompt.prefix == "Let's think step by step."
    assert prompt.cue == "Therefore, the answer is"


def test_few_shot_forms() -> None:
    task = Words([f"question {i}" for i in range(9)])
    example = Example(id="e", question="the asked one")
    chat = prompter("few_shot:k=3")(task, example, seed=0)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 3 + ["user"]
    for question, reply in zip(chat.messages[:-1:2], chat.messages[1:-1:2], strict=True):
        number = question.content.split("\n")[0].removeprefix("question ")
        assert reply.content == f"Answer: {number}"
    steps = prompter("few_shot_cot:k=3")(task, example, seed=0)
    assert shown(steps) == shown(chat)  # the same draw, so the two are comparable
    assert all(message.content.startswith("because\nAnswer: ") for message in steps.messages[1:-1:2])
    text = prompter("few_shot:k=3,style=text")(task, example, seed=0)
    assert len(text.messages) == 1
    assert text.messages[0].content.count("Question: ") == 4
    assert set(task.asked) == {"train"}  # never the evaluated split


def test_shots_depend_on_the_example_alone() -> None:
    task = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=30,train=100")
    examples = [example.public() for example in task.examples("test")]
    make = prompter("few_shot_cot:k=4")
    forward = {example.id: shown(make(task, example, seed=5)) for example in examples}
    backward = {example.id: shown(make(task, example, seed=5)) for example in reversed(examples[10:])}
    assert all(forward[key] == shots for key, shots in backward.items())
    assert len({tuple(shots) for shots in forward.values()}) > 25  # a draw of its own for nearly each
    assert all(len(set(shots)) == 4 for shots in forward.values())
    assert any(shown(make(task, example, seed=6)) != forward[example.id] for example in examples)
    # the first shots of a longer list are those of a shorter one
    assert shown(prompter("few_shot_cot:k=2")(task, examples[0], seed=5)) == forward[examples[0].id][:2]


def test_common_shots_are_one_set() -> None:
    task = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=30,train=100")
    make = prompter("few_shot:k=4,common=true")
    prompts = [make(task, example.public(), seed=0) for example in task.examples("test")]
    assert len({prompt.messages[:-1] for prompt in prompts}) == 1


LONG = (
    "A farmer has {n} sheep and sells some of them at the market on every Monday until there are only five left in the barn."
)


@pytest.mark.parametrize("common", ["false", "true"])
def test_an_equal_question_is_never_a_shot(common: str) -> None:
    task = Words(["What is 2 + 2?", "  what IS 2 + 2 ", "What is 2 + 3?", "What is 2 - 2?"])
    example = Example(id="e", question="What is 2 + 2?")
    for seed in range(20):
        prompt = prompter(f"few_shot:k=2,common={common}")(task, example, seed=seed)
        assert set(shown(prompt)) == {"What is 2 + 3?", "What is 2 - 2?"}  # one digit or sign apart is another question
    with pytest.raises(ConfigError, match="task 'words' has only 2 usable training examples for k=3 shots"):
        prompter("few_shot:k=3")(task, example, seed=0)


def test_a_near_copy_of_a_long_question_is_never_a_shot() -> None:
    task = Words(
        [
            LONG.format(n=40) + " How many?",
            "Something else entirely, and short.",
            "A farmer has 40 sheep. How many are left?",
        ]
    )
    example = Example(id="e", question="Listen. " + LONG.format(n=40) + " How many were sold?")
    for seed in range(20):
        assert set(shown(prompter("few_shot:k=2")(task, example, seed=seed))) == set(task.train[1:])


def test_the_task_s_own_wording_is_not_a_copy() -> None:
    # More than four questions share the words: a template, whose numbers make the question.
    task = Words([LONG.format(n=n) for n in range(50, 60)], name="template")
    prompt = prompter("few_shot:k=8")(task, Example(id="e", question=LONG.format(n=40)), seed=0)
    assert len(shown(prompt)) == 8


def test_no_worked_solutions_says_so() -> None:
    task = load_task("reasoning_gym/maze:test=2,validation=1,train=3")
    with pytest.raises(ConfigError, match="no worked solutions to show: use few_shot instead"):
        prompter("few_shot_cot:k=1")(task, task.examples("test")[0].public(), seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("few_shot:k=0", "k: .*greater than or equal to 1"),
        ("few_shot:shots=3", "unknown key 'shots'"),
        ("few_shot:style=poem", "style"),
        ("few_shots", "did you mean 'few_shot'"),
    ],
)
def test_user_errors(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompter(spec)


def test_every_prompter_and_strategy_describes_itself() -> None:
    for package, kind in ((PROMPTERS, "prompter"), ("posttrain.test_time", "strategy")):
        for name in available(package):
            cls = lookup(name, package, kind)
            if name in {
                "zero_shot",
                "few_shot",
                "few_shot_cot",
                "zero_shot_cot",
                "greedy",
                "sample",
                "self_consistency",
                "best_of_n",
            }:
                assert cls.needs <= {"logprobs", "score", "prefix", "watch", "stream", "update"}
                assert cls.cost
                assert cls.fails
                assert isinstance(cls.paper, str)
