import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Example, Finish, Message, Prompt, Sampled
from posttrain.finetuning.distilled import Distilled
from posttrain.finetuning.mixed import Mixed
from posttrain.finetuning.scored_responses import ScoredResponses
from posttrain.finetuning.verified_traces import VerifiedTraces
from posttrain.finetuning.worked_examples import WorkedExamples
from posttrain.pipeline.methods import build_maker
from posttrain.preference.reference_pairs import ReferencePairs
from posttrain.preference.verified_pairs import VerifiedPairs
from posttrain.training.judged import read_judged


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


def test_pairs_can_share_their_beginning() -> None:
    """Every wrong reply with the right one that it follows for longest, those that part latest first."""
    right = ("1+2=3; 3+4=7", "2+1=3; 4+3=7", "seven: 7")
    wrong = ("2+1=3; 4+3=8", "seven: 9", "1+3=4", "x")
    item = Sampled(
        example=Example(id="a", question="a?", answer="7"),
        texts=right + wrong,
        scores=(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        finishes=("stop",) * 7,
        answers=right + wrong,
    )
    made = VerifiedPairs(per_question=9, match="beginning")(Task(), prompter, [item], seed=0)
    pairs = [(row["chosen"], row["rejected"]) for row in made.rows]
    assert pairs[:3] == [(right[1], wrong[0]), (right[2], wrong[1]), (right[0], wrong[2])]
    assert len(pairs) == 4, "a wrong reply like no right one has a pair, too, the last"
    assert pairs[3][1] == "x"
    few = VerifiedPairs(per_question=1, match="beginning")(Task(), prompter, [item], seed=0).rows
    assert [(row["chosen"], row["rejected"]) for row in few] == pairs[:1]


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
    assert [row["completion"] for row in bare.rows] == [row["id"] for row in made.rows], "the task asks for no form"
    asking = Task(EXAMPLES)
    asking.instruction = 'Finish with a line "Answer: ".'
    bare = WorkedExamples(n=5, steps=False)(asking, prompter, [], seed=0)
    assert [row["completion"] for row in bare.rows] == [f"Answer: {row['id']}" for row in made.rows]


def test_worked_examples_say_what_is_missing() -> None:
    with pytest.raises(DataError, match="n=10: the train split of sums has 9 examples"):
        WorkedExamples(n=10)(Task(EXAMPLES), prompter, [], seed=0)
    with pytest.raises(DataError, match="no worked steps for example 0: use worked_examples:steps=false"):
        WorkedExamples(n=1)(Task([Example(id="0", question="?", answer="1")]), prompter, [], seed=0)


def replies(name: str, texts: Sequence[str], finishes: Sequence[Finish] | None = None, chosen: int = 0) -> Sampled:
    """Texts that begin with a capital are right."""
    return Sampled(
        example=Example(id=name, question=f"{name}?", answer="x"),
        texts=tuple(texts),
        scores=tuple(float(text[:1].isupper()) for text in texts),
        finishes=tuple(finishes or ["stop"] * len(texts)),
        answers=tuple(texts),
        chosen=texts[chosen],
    )


SAMPLED = [
    replies("a", ["So one", "so wrong", "So  ONE\n", "So longer one", "So cut"], ["stop"] * 4 + ["length"]),
    replies("b", ["no", "nor", "neither"]),
    replies("c", ["Yes", "Yes indeed", "Yes, it is so", "no", "Yes"]),
]


def test_traces_are_right_whole_and_each_once() -> None:
    made = VerifiedTraces(per_question=2)(Task(), prompter, SAMPLED, seed=0)
    assert made.counts == {
        "questions": 3,
        "solved": 2,
        "replies": 13,
        "cut": 1,
        "wrong": 5,
        "repeated": 2,
        "more_than_wanted": 1,
        "too_few_to_be_even": 0,
        "rows": 4,
    }
    assert [row["id"] for row in made.rows] == ["a", "a", "c", "c"]
    assert {row["completion"] for row in made.rows[:2]} == {"So one", "So longer one"}
    assert {row["completion"] for row in made.rows[2:]} < {"Yes", "Yes indeed", "Yes, it is so"}
    assert made.rows[0]["prompt"] == [{"role": "user", "content": "a?"}]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("shortest", ["So one", "So longer one", "Yes", "Yes indeed"]),
        ("longest", ["So longer one", "So one", "Yes, it is so", "Yes indeed"]),
    ],
)
def test_traces_by_length(how: Any, expected: list[str]) -> None:
    made = VerifiedTraces(per_question=2, choose=how)(Task(), prompter, SAMPLED, seed=0)
    assert [row["completion"] for row in made.rows] == expected


def test_random_traces_depend_on_the_seed_alone() -> None:
    items = [replies(str(i), [f"Y{j}" for j in range(9)]) for i in range(9)]
    make = VerifiedTraces(per_question=3)
    one, again, other = (make(Task(), prompter, items, seed=seed).rows for seed in (0, 0, 1))
    assert one == again != other
    backwards = make(Task(), prompter, [replies(str(i), [f"Y{j}" for j in reversed(range(9))]) for i in range(9)], seed=0)
    assert backwards.rows == one


def test_even_leaves_out_questions_with_too_few() -> None:
    made = VerifiedTraces(per_question=3, even=True)(Task(), prompter, SAMPLED, seed=0)
    assert [row["id"] for row in made.rows] == ["c", "c", "c"]
    assert made.counts["too_few_to_be_even"] == 2


@given(
    texts=st.lists(st.lists(st.sampled_from(["A", "B", "C", "a", "b", ""]), min_size=1, max_size=8), min_size=1, max_size=5),
    per_question=st.integers(1, 3),
    even=st.booleans(),
)
def test_every_reply_is_counted_once(texts: list[list[str]], per_question: int, even: bool) -> None:
    items = [
        replies(str(i), group, ["length" if j % 5 == 4 else "stop" for j in range(len(group))])
        for i, group in enumerate(texts)
    ]
    only_a = VerifiedTraces(per_question=per_question, even=even, filters=("rule:regex=A,parses=false,steps=false>=1",))
    plain = VerifiedTraces(per_question=per_question, even=even)
    for maker in (plain, only_a, Distilled(per_question=per_question, keep="right")):
        try:
            counts = dict(maker(Task(), prompter, items, seed=0).counts)
        except DataError:
            continue
        counts.pop("questions"), counts.pop("solved", 0)
        assert counts.pop("replies") == sum(counts.values())


def test_no_traces_says_why() -> None:
    with pytest.raises(DataError, match="of 3 replies to 1 questions 0 were cut, 3 wrong and 0 too few"):
        VerifiedTraces()(Task(), prompter, SAMPLED[1:2], seed=0)
    with pytest.raises(ConfigError, match="per_question = 0 must be at least 1"):
        VerifiedTraces(per_question=0)


FILTERED = [
    replies(
        "a", ["S<think>a</think>b", "So, a b a b a b", "So", "no", "S<think>a</think>B", "So cut"], ["stop"] * 5 + ["length"]
    ),
    replies("b", ["So, a b c d", "So 这是什么呢", "no"]),
]


def test_traces_must_pass_the_filters_in_turn() -> None:
    filters = ("language:target=en>=0.9", "(repetition:n=2)>=-0.2", "length:max=5>=1")
    made = VerifiedTraces(filters=filters)(Task(), prompter, FILTERED, seed=0)
    # a: the second repeats itself, (so a) (a b) (b a) and three more; the last is the first again
    assert dict(made.counts) == {
        "questions": 2, "solved": 2, "replies": 9, "cut": 1, "wrong": 2, "repeated": 1, "more_than_wanted": 0,
        "too_few_to_be_even": 0, f"not {filters[0]}": 1, f"not {filters[1]}": 1, f"not {filters[2]}": 0, "rows": 3,
    }  # fmt: skip
    assert [row["id"] for row in made.rows] == ["a", "a", "b"]
    assert {row["completion"] for row in made.rows} == {"S<think>a</think>b", "So", "So, a b c d"}


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ("format", r"filter 'format': write VERIFIER>=NUMBER"),
        ("format>=much", "write VERIFIER>=NUMBER"),
        (">=1", "write VERIFIER>=NUMBER"),
        ("frmat>=1", "unknown verifier or judge 'frmat'; did you mean 'format'"),
        ("format:tag=x>=1", "unknown key 'tag'"),
        ("judge>=0.5", "asks a model, whose cost nobody would count"),
        ("reward_model:model=x>=0.5", "asks a model"),
    ],
)
def test_wrong_filters_are_said_when_the_maker_is_made(each: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VerifiedTraces(filters=(each,))


def test_no_traces_behind_the_filters_says_which() -> None:
    with pytest.raises(DataError, match="0 were cut, 3 not format>=1, 1 wrong"):
        VerifiedTraces(filters=("format>=1",))(Task(), prompter, [replies("a", ["So", "So on", "So it is", "no"])], seed=0)


def test_a_function_that_filters_is_a_file_that_decides_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def short(example, text):\n    return float(len(text) < 4)\n")
    spec = f"verified_traces:filters=[format:opened=true>=0,(function:call={path}:short)>=1]"
    maker: Any = build_maker(spec)
    assert maker.files == (str(path),)
    made = maker(Task(), prompter, [replies("a", ["So", "So long"])], seed=0)
    assert [row["completion"] for row in made.rows] == ["So"]


def test_the_student_can_be_asked_in_another_way() -> None:
    def long(task: object, example: Example, *, seed: int) -> Prompt:
        messages = (Message(role="system", content="Think."), Message(role="user", content=example.question))
        return Prompt(messages=messages, opening="Let us see. ")

    asked = VerifiedTraces(per_question=1, choose="shortest")(Task(), long, SAMPLED, seed=0).rows[0]
    assert [message["role"] for message in asked["prompt"]] == ["system", "user"]
    assert asked["completion"] == "Let us see. So one"
    bare = VerifiedTraces(per_question=1, choose="shortest", prompt="zero_shot")(Task(), long, SAMPLED, seed=0).rows[0]
    assert bare["prompt"] == [{"role": "user", "content": "a?"}]
    assert bare["completion"] == "Let us see. So one"
    with pytest.raises(ConfigError, match="begins the assistant's turn itself"):
        VerifiedTraces(prompt="zero_shot_cot")(Task(), prompter, SAMPLED, seed=0)


def test_a_teachers_replies_all_right_or_chosen() -> None:
    items = [replies("a", ["one", "Two", ""], chosen=1), replies("b", ["No", "cut"], ["stop", "length"])]
    rows = Distilled(per_question=9)(Task(), prompter, items, seed=0)
    assert sorted(row["completion"] for row in rows.rows) == ["No", "Two", "one"]
    assert rows.counts == {
        "questions": 2, "replies": 5, "cut": 1, "empty": 1, "repeated": 0, "more_than_wanted": 0, "rows": 3,
    }  # fmt: skip
    right = Distilled(per_question=9, keep="right")(Task(), prompter, items, seed=0)
    assert [row["completion"] for row in right.rows] == ["Two", "No"]
    assert right.counts["not_right"] == 1
    chosen = Distilled(keep="chosen")(Task(), prompter, items, seed=0)
    assert [row["completion"] for row in chosen.rows] == ["Two", "No"]
    with pytest.raises(DataError, match=r"distilled: no rows \(1 questions, 1 replies, 1 cut"):
        Distilled()(Task(), prompter, [replies("a", ["x"], ["length"])], seed=0)


def rows_file(path: Path, name: str, n: int) -> str:
    path.write_text("".join(json.dumps({"question": f"{name}{i}", "answer": "x"}) + "\n" for i in range(n)))
    return str(path)


def test_a_mix_rehearses_general_rows_at_the_share(tmp_path: Path) -> None:
    domain, general = rows_file(tmp_path / "d.jsonl", "d", 30), rows_file(tmp_path / "g.jsonl", "g", 50)
    maker = Mixed(domain=domain, general=general, share=0.25)
    made = maker(Task(), prompter, [], seed=0)
    asked = [row["prompt"][0]["content"] for row in made.rows]
    assert made.counts == {"domain": 30, "general": 10, "general_unused": 40, "rows": 40}
    assert len(set(asked)) == 40
    assert sum(name[0] == "g" for name in asked) == 10
    assert len({name[0] for name in asked[:20]}) == 2  # shuffled together
    assert maker(Task(), prompter, [], seed=0) == made != maker(Task(), prompter, [], seed=1)
    assert maker.reads == (general, domain)


def test_a_mix_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    domain, general = rows_file(tmp_path / "d.jsonl", "d", 30), rows_file(tmp_path / "g.jsonl", "g", 5)
    with pytest.raises(DataError, match=r"30 domain rows at share=0\.5 need 30 general rows, and .* has 5"):
        Mixed(domain=domain, general=general, share=0.5)(Task(), prompter, [], seed=0)
    with pytest.raises(DataError, match="raise the share"):
        Mixed(domain=domain, general=general, share=0.001)(Task(), prompter, [], seed=0)
    with pytest.raises(ConfigError, match="share = 1 must lie between 0 and 1"):
        Mixed(general=general, share=1.0)
    with pytest.raises(ConfigError, match="name the rows to rehearse"):
        Mixed()


def test_scored_responses_list_every_finished_reply_with_its_grade() -> None:
    several = [
        sampled("a", "XabX", ["stop", "stop", "length", "stop"]),
        sampled("b", "XY"),
        sampled("c", "a", ["length"]),
    ]
    made = ScoredResponses()(Task(), prompter, several, seed=0)
    assert made.rows == (
        {"id": "a", "prompt": [{"role": "user", "content": "a?"}], "responses": ["X", "a"], "scores": [1.0, 0.0]},
        {"id": "b", "prompt": [{"role": "user", "content": "b?"}], "responses": ["X", "Y"], "scores": [1.0, 1.0]},
    )
    assert made.counts == {
        "questions": 3, "replies": 7, "cut": 2, "repeated": 1, "without_a_reply": 1, "not_mixed": 0, "rows": 2
    }  # fmt: skip
    mixed = ScoredResponses(mixed=True)(Task(), prompter, several, seed=0)
    assert [row["id"] for row in mixed.rows] == ["a"]
    with pytest.raises(DataError, match="1 have no finished reply and 1 replies of one score only"):
        ScoredResponses(mixed=True)(Task(), prompter, several[1:], seed=0)
    read = read_judged(made.rows, lambda i: f"row {i}")
    assert [one.score for one in read] == [1.0, 0.0, 1.0, 1.0]


def test_what_a_grade_tells_apart_is_no_copy() -> None:
    """Where case counts, a reply that is wrong by its case alone is what a reward model must see."""
    (row,) = ScoredResponses()(Task(), prompter, [sampled("a", "aAbBB")], seed=0).rows
    assert dict(zip(row["responses"], row["scores"], strict=True)) == {"a": 0.0, "A": 1.0, "b": 0.0, "B": 1.0}
    same = replace(sampled("a", "abc"), texts=("No no", "no  no", "NO NO"), scores=(0.0, 0.0, 1.0))
    (row,) = ScoredResponses()(Task(), prompter, [same], seed=0).rows
    assert dict(zip(row["responses"], row["scores"], strict=True)) == {"No no": 0.0, "NO NO": 1.0}


def test_a_reference_joins_the_replies_as_a_right_one() -> None:
    several = [sampled("a", "Xb"), sampled("b", "ab"), sampled("c", "xa"), sampled("d", "X")]
    unknown = replace(sampled("e", "Xa"), example=Example(id="e", question="e?"))
    made = ScoredResponses(reference="answer", mixed=True)(Task(), prompter, [*several, unknown], seed=0)
    found = {row["id"]: dict(zip(row["responses"], row["scores"], strict=True)) for row in made.rows}
    assert found["a"] == {"X": 1.0, "b": 0.0}  # written already
    assert found["b"] == {"a": 0.0, "b": 0.0, "x": 1.0}
    assert found["c"] == {"x": 1.0, "a": 0.0}  # graded as wrong, so the grade goes by case: it is the reference now
    assert found["e"] == {"X": 1.0, "a": 0.0}
    assert (made.counts["not_mixed"], made.counts["without_a_reference"]) == (1, 1)
    solved = replace(several[1], example=replace(several[1].example, rationale="1 + 1 = x"))
    (row,) = ScoredResponses(reference="worked")(Task(), prompter, [solved], seed=0).rows
    assert (row["responses"][-1], row["scores"]) == ("1 + 1 = x", [0.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match="by=value knows nothing of"):
        ScoredResponses(reference="worked", by="value")


def test_scores_of_the_strategys_verifier_in_place_of_grades() -> None:
    item = sampled("a", "AbC", ["stop", "stop", "stop"])
    judged = replace(item, values=(0.2, 0.9, None))
    made = ScoredResponses(by="value")(Task(), prompter, [judged], seed=0)
    (row,) = made.rows
    assert dict(zip(row["responses"], row["scores"], strict=True)) == {"A": 0.2, "b": 0.9}
    assert (made.counts["unscored"], made.counts["repeated"]) == (1, 0)
    assert "unscored" not in ScoredResponses()(Task(), prompter, [judged], seed=0).counts
    with pytest.raises(DataError, match="no reply of this evaluation has a score"):
        ScoredResponses(by="value")(Task(), prompter, [item], seed=0)


def test_references_are_preferred_to_what_the_model_wrote() -> None:
    item = replace(
        sampled("q", "abca"), texts=("a reply", "x ", "A  reply", "another", "", "unfinis"), scores=(0.0,) * 6,
        finishes=("stop", "stop", "stop", "stop", "stop", "length"),
    )  # fmt: skip
    made = ReferencePairs(per_question=5)(Task(), prompter, [item], seed=1)
    assert sorted((row["chosen"], row["rejected"]) for row in made.rows) == [("x", "a reply"), ("x", "another")]
    assert made.rows[0]["prompt"] == [{"role": "user", "content": "q?"}]
    assert made.counts == {
        "questions": 1, "without_a_reference": 0, "replies": 6, "cut": 1, "empty": 1, "repeated": 1, "the_reference": 1,
        "more_than_wanted": 0, "rows": 2,
    }  # fmt: skip
    one = ReferencePairs()(Task(), prompter, [item], seed=1)
    assert len(one.rows) == 1
    assert one.counts["more_than_wanted"] == 1
    solved = replace(item, example=replace(item.example, rationale="1 + 1 = x"))
    assert ReferencePairs()(Task(), prompter, [solved], seed=1).rows[0]["chosen"] == "1 + 1 = x"


def test_no_references_or_nothing_finished_is_told() -> None:
    bare = replace(sampled("q", "ab"), example=Example(id="q", question="q?"))
    with pytest.raises(DataError, match="of 1 questions 1 have no reference reply"):
        ReferencePairs()(Task(), prompter, [bare], seed=1)
    with pytest.raises(DataError, match="of 2 replies 2 were cut"):
        ReferencePairs()(Task(), prompter, [sampled("q", "ab", ["length", "length"])], seed=1)
