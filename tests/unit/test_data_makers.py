from collections.abc import Sequence

import pytest

from posttrain.core.errors import DataError
from posttrain.core.types import Example, Finish, Message, Prompt, Sampled
from posttrain.finetuning.worked_examples import WorkedExamples
from posttrain.preference.verified_pairs import VerifiedPairs


class Task:
    name = "sums"
    version = "1"
    max_tokens = 8
    instruction = ""

    def __init__(self, examples: Sequence[Example] = ()) -> None:
        self._examples = examples

    def examples(self, split: str) -> Sequence[Example]:
        return self._examples

    def extract(self, text: str) -> str | None:
        return text

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


def prompter(task: object, example: Example, *, seed: int) -> Prompt:
    assert example.answer is None, "a prompter must not see the answer"
    return Prompt(messages=(Message(role="user", content=example.question),))


def sampled(name: str, texts: str, finishes: Sequence[Finish] | None = None) -> Sampled:
    """Texts as letters: capitals are right."""
    return Sampled(
        example=Example(id=name, question=f"{name}?", answer="x"),
        texts=tuple(texts),
        scores=tuple(float(text.isupper()) for text in texts),
        finishes=tuple(finishes or ["stop"] * len(texts)),
        answers=tuple(texts),
    )


def test_pairs_are_right_over_wrong_to_the_same_question() -> None:
    made = VerifiedPairs(per_question=3)(
        Task(), prompter, [sampled("a", "XabXY"), sampled("b", "XY"), sampled("c", "ab"), sampled("d", "Xaaa")], seed=0
    )
    assert made.counts == {"questions": 4, "all_right": 1, "all_wrong": 1, "mixed": 2, "rows": 4}
    assert all(row["chosen"].isupper() and row["rejected"].islower() for row in made.rows)
    assert [row["id"] for row in made.rows] == ["a", "a", "a", "d"]
    assert len({(row["id"], row["chosen"], row["rejected"]) for row in made.rows}) == 4
    assert {row["rejected"] for row in made.rows[:2]} == {"a", "b"}
    assert made.rows[0]["prompt"] == [{"role": "user", "content": "a?"}]


@pytest.mark.parametrize(("right", "wrong"), [(1, 5), (5, 1), (2, 2), (2, 3), (2, 4), (3, 3), (4, 6)])
def test_every_combination_can_be_drawn(right: int, wrong: int) -> None:
    texts = "ABCDEF"[:right] + "abcdef"[:wrong]
    made = VerifiedPairs(per_question=99)(Task(), prompter, [sampled("a", texts)], seed=1)
    assert len(made.rows) == len({(row["chosen"], row["rejected"]) for row in made.rows}) == right * wrong
    first = [row["rejected"] for row in made.rows[:wrong]]
    assert len(set(first)) == wrong


def test_cut_responses_are_left_out() -> None:
    cut = sampled("a", "Xa", ["length", "stop"])
    with pytest.raises(DataError, match="0 were answered all right and 1 all wrong"):
        VerifiedPairs()(Task(), prompter, [cut], seed=0)


def test_pairs_depend_on_the_seed_alone() -> None:
    items = [sampled(str(i), "XYZabcd") for i in range(9)]
    one, again, other = (VerifiedPairs()(Task(), prompter, items, seed=seed).rows for seed in (0, 0, 1))
    assert one == again != other


EXAMPLES = [Example(id=str(i), question=f"{i}?", answer=str(i), rationale=f"so\nAnswer: {i}") for i in range(9)]


def test_worked_examples_are_drawn_without_replacement() -> None:
    made = WorkedExamples(n=5)(Task(EXAMPLES), prompter, [], seed=0)
    assert len({row["id"] for row in made.rows}) == 5
    assert all(row["completion"] == f"so\nAnswer: {row['id']}" for row in made.rows)
    bare = WorkedExamples(n=5, steps=False)(Task(EXAMPLES), prompter, [], seed=0)
    assert [row["completion"] for row in bare.rows] == [f"Answer: {row['id']}" for row in made.rows]


def test_worked_examples_say_what_is_missing() -> None:
    with pytest.raises(DataError, match="n=10: the train split of sums has 9 examples"):
        WorkedExamples(n=10)(Task(EXAMPLES), prompter, [], seed=0)
    with pytest.raises(DataError, match="no worked steps for example 0: use worked_examples:steps=false"):
        WorkedExamples(n=1)(Task([Example(id="0", question="?", answer="1")]), prompter, [], seed=0)
