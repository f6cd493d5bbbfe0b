"""Labels by a model: averages of both orders, ties, bias against hand-computed figures, refusals; critique and revision."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Asked, Completion, Example, Message, Prompt, Sampled, Usage
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.methods import build_maker
from posttrain.preference._principles import PRINCIPLES, read_principles
from posttrain.preference.ai_feedback import AiFeedback
from posttrain.preference.critique_revise import CritiqueRevise
from posttrain.preference.verdict_examples import VerdictExamples
from posttrain.stats.feedback import Compared, judge_bias
from posttrain.stats.intervals import ratio
from posttrain.verifiers import build_judge


class Task:
    name = "letters"
    version = "1"
    max_tokens = 8
    instruction = ""

    def examples(self, split: str) -> Sequence[Example]:
        return ()

    def extract(self, text: str) -> str | None:
        return text.split()[-1]

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer is not None and answer.isupper())


TASK: Any = Task()


def prompter(task: object, example: Example, *, seed: int) -> Prompt:
    assert example.answer is None, "a prompter must not see the answer"
    return Prompt(messages=(Message(role="user", content=example.question),))


def sampled(texts: Sequence[str], name: str = "q", **more: Any) -> Sampled:
    """Texts whose last word is in capitals are right."""
    return Sampled(
        example=Example(id=name, question=f"{name}?", answer="X"),
        texts=tuple(texts),
        scores=tuple(float(text.split()[-1].isupper()) for text in texts),
        finishes=tuple(more.pop("finishes", ["stop"] * len(texts))),
        answers=tuple(text.split()[-1] for text in texts),
        **more,
    )


def shown(prompt: Prompt) -> tuple[str, str]:
    """The two responses in the order in which they are shown."""
    asked = prompt.messages[-1].content
    first = asked.split("[Response 1]\n")[1].split("\n\n[Response 2]\n")
    return first[0], first[1].split("\n\n[Criteria]\n")[0]


class Labeller(ScriptedEngine):
    """Gives the first response shown a probability by a function of both; the two labels have `together` between them."""

    def __init__(self, p_first: Callable[[str, str], float], together: float = 0.9) -> None:
        super().__init__(lambda asked, sample, seed: "The first is shorter.")
        self.p_first, self.together = p_first, together
        self.scored: list[Prompt] = []

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        self.scored.append(prompt)
        p = self.p_first(*shown(prompt))
        log = math.log((p if continuation == " 1" else 1 - p) * self.together)
        return Completion(
            text=str(continuation), tokens=(ord(str(continuation)[-1]),), raw_logprobs=(log,), usage=Usage(calls=1, scored=1)
        )


def asked(maker: AiFeedback | CritiqueRevise, items: Sequence[Sampled], engine: Any, seed: int = 0) -> list[Sampled]:
    async def every() -> list[Asked]:
        hidden = [replace(item, example=item.example.public(), scores=()) for item in items]
        return [await maker.ask(TASK, prompter, item, engine, seed=seed) for item in hidden]

    return [replace(item, asked=found) for item, found in zip(items, asyncio.run(every()), strict=True)]


def made(maker: AiFeedback | CritiqueRevise, items: Sequence[Sampled], engine: Any) -> Any:
    return maker(TASK, prompter, asked(maker, items, engine), seed=0)


def test_a_label_is_the_mean_of_both_orders() -> None:
    # honest taste 0.7 for "good" on top of a taste for the first place: 0.8 when it is first, 0.6 when it is second
    engine = Labeller(lambda first, second: 0.8 if first == "good" else 1 - 0.6)
    result = made(AiFeedback(biased="keep"), [sampled(["good", "bad"])], engine)
    (row,) = result.rows
    assert row == {
        "id": "q", "prompt": [{"role": "user", "content": "q?"}], "chosen": "good", "rejected": "bad", "preference": 0.7,
        "tie": False, "margin": 0.4,
    }  # fmt: skip
    place = result.facts["labeller"]["position"]
    assert (place["flips"], place["first_share"], place["p_first"]) == (0, 0.5, 0.6)
    assert all(PRINCIPLES["helpful"] in prompt.messages[-1].content for prompt in engine.scored)
    assert [prompt.begun for prompt in engine.scored] == ["Verdict:"] * 4


def test_a_labeller_of_one_place_gives_ties_and_is_refused() -> None:
    engine = Labeller(lambda first, second: 0.9)
    items = [sampled([f"a{k} x", f"b{k} y"], f"q{k}") for k in range(5)]
    with pytest.raises(DataError, match=r"100% of 5 pairs, more than max_flips = 40%.*biased=keep"):
        made(AiFeedback(), items, engine)
    result = made(AiFeedback(biased="keep"), items, engine)
    assert [(row["preference"], row["tie"], row["margin"]) for row in result.rows] == [(0.5, True, 0.0)] * 5
    assert result.counts["ties"] == 5
    with pytest.raises(DataError, match="5 are ties"):
        made(AiFeedback(biased="keep", labels="hard"), items, engine)
    with pytest.raises(DataError, match=r"one place in both orders \(net\) in 100% of 5 pairs, more than max_position_bias"):
        made(AiFeedback(max_flips=1), items, engine)


def test_hard_labels_and_wider_ties() -> None:
    taste = {"a": 0.55, "b": 0.5, "c": 0.05}
    engine = Labeller(lambda first, second: min(0.95, max(0.05, 0.5 + taste[first] - taste[second])))
    items = [sampled(["a", "b"], "1"), sampled(["a", "c"], "2")]
    assert [row["preference"] for row in made(AiFeedback(), items, engine).rows] == [0.55, 0.95]
    hard = made(AiFeedback(labels="hard", tie=0.1), items, engine)
    assert [(row["chosen"], row["rejected"]) for row in hard.rows] == [("a", "c")]
    assert "preference" not in hard.rows[0]
    assert hard.counts["ties"] == 1


def test_pairs_are_of_whole_different_responses_and_each_is_used_before_any_is_again() -> None:
    maker = AiFeedback(per_question=2)
    item = sampled(["a A", "b B", "a A", "c C", "d D", "cut"], finishes=["stop"] * 5 + ["length"])
    pairs = maker._pairs(item, seed=3)
    assert sorted(index for pair in pairs for index in pair) == [0, 1, 3, 4]
    assert maker._pairs(item, seed=3) == pairs
    assert any(maker._pairs(item, seed=seed) != pairs for seed in range(4, 9))
    assert len(AiFeedback(per_question=99)._pairs(item, seed=0)) == 6
    same = sampled(["a X", "b X", "c y"])
    assert all({0, 1} != set(pair) for pair in AiFeedback(per_question=9, differ=True)._pairs(same, seed=0))
    two = sampled(["a", "b", "c", "d"], own=(True, True, False, False))
    assert all(two.own[i] != two.own[j] for i, j in AiFeedback(per_question=9)._pairs(two, seed=0))
    assert len(AiFeedback(per_question=9)._pairs(two, seed=0)) == 4


def test_reasoning_comes_before_the_verdict_and_is_kept() -> None:
    engine = Labeller(lambda first, second: 0.75 if first == "good" else 0.25)
    (item,) = asked(AiFeedback(reasoning=True), [sampled(["good", "bad"])], engine)
    assert item.asked is not None
    assert item.asked.texts == ("The first is shorter.",) * 2
    assert item.asked.said["pairs"][0]["label"] in (0.75, 0.25)
    assert {prompt.begun for prompt in engine.scored} == {"The first is shorter.\nVerdict:"}
    assert "before you give a verdict" in engine.scored[0].messages[-1].content
    (cut,) = asked(AiFeedback(reasoning=True, max_tokens=2), [sampled(["good", "bad"])], engine)
    assert cut.asked is not None
    assert cut.asked.said["cut"] == 2


def writes(words: Callable[[str, str, int], str], **more: Any) -> ScriptedEngine:
    """A server that gives no log-probabilities."""
    return ScriptedEngine(
        {}, respond=lambda prompt, sample, seed: words(*shown(prompt), sample), can=frozenset({"stream"}), **more
    )


def test_verdicts_in_words_where_there_are_no_probabilities() -> None:
    engine = writes(lambda first, second, sample: "Verdict: 1" if first == "good" else "Verdict: 2")
    (row,) = made(AiFeedback(), [sampled(["good", "bad"])], engine).rows
    assert (row["chosen"], row["preference"]) == ("good", 1.0)
    half = writes(lambda first, second, sample: "Verdict: tie" if first == "good" else "Verdict: 2")
    (row,) = made(AiFeedback(biased="keep"), [sampled(["good", "bad"])], half).rows
    assert (row["chosen"], row["preference"]) == ("good", 0.75)  # a win in one order, a tie in the other
    some = writes(lambda first, second, sample: "Verdict: 1" if "good" in (first, second) else "who knows")
    result = made(AiFeedback(biased="keep"), [sampled(["good", "bad"], "1"), sampled(["bad", "worse"], "2")], some)
    assert result.counts["unparsed"] == 1
    assert [row["tie"] for row in result.rows] == [True]
    with pytest.raises(DataError, match="1 of 1 pairs had no verdict that can be read"):
        made(AiFeedback(), [sampled(["a", "b"])], writes(lambda first, second, sample: "hm"))


def test_the_share_of_sampled_verdicts() -> None:
    said = {0: "Verdict: 1", 1: "Verdict: 2", 2: "Verdict: 1", 3: "no idea"}
    engine = writes(lambda first, second, sample: said[sample] if first == "good" else "Verdict: 2")
    maker = AiFeedback(samples=4)
    (item,) = asked(maker, [sampled(["good", "bad"])], engine)
    assert item.asked is not None
    (pair,) = item.asked.said["pairs"]
    good = pair["label"] if item.texts[pair["a"]] == "good" else 1 - pair["label"]
    assert good == pytest.approx((2 / 3 + 1) / 2, abs=1e-4)
    assert item.asked.said["unparsed_verdicts"] == 1
    with pytest.raises(ConfigError, match="leave samples out"):
        AiFeedback(samples=4, read="logprobs")


def test_the_grades_decide_nothing() -> None:
    item = sampled(["right A", "wrong b"])
    engine = Labeller(lambda first, second: 0.3 if first == "right A" else 0.7)
    (row,) = made(AiFeedback(), [item], engine).rows
    assert row["chosen"] == "wrong b"
    gold = made(AiFeedback(), [item], engine).facts["labeller"]["gold"]
    assert (gold["share"], gold["pairs"]) == (0.0, 1)


def pair(label: float | None, said: str, lengths: tuple[int, int], **more: Any) -> Compared:
    names = {"f": "first", "s": "second", "t": "tie", "u": "unparsed"}
    orders: Any = tuple(names[letter] for letter in said)
    return Compared(**{"question": f"q{label}{said}{lengths}", **more}, label=label, said=orders, lengths=lengths)


PAIRS = [
    pair(0.9, "fs", (10, 5), grades=(1, 0), p_first=(0.9, 0.1)),  # longer, right
    pair(0.2, "sf", (3, 8), grades=(0, 1), p_first=(0.2, 0.8)),  # longer, right
    pair(0.8, "ff", (4, 9), grades=(0, 1), p_first=(1.0, 0.4)),  # flipped to the first; shorter, wrong
    pair(0.5, "tt", (7, 2), grades=(1, 0), p_first=(0.5, 0.5)),  # a tie
    pair(None, "fu", (1, 2), grades=(1, 0)),
    pair(0.6, "ss", (6, 6), grades=(1, 1)),  # equal length and grade; flipped to the second
    pair(0.7, "ff", (9, 1)),  # flipped to the first; no grades
]


def test_bias_against_figures_by_hand() -> None:
    found = judge_bias(PAIRS)
    assert (found["pairs"], found["unparsed"], found["ties"]) == (6, 1, 1)
    place = found["position"]
    assert (place["pairs"], place["flips"], place["first"], place["second"]) == (6, 3, 2, 1)
    assert place["flip_rate"] == 0.5
    assert place["consistency"] == 0.5
    assert place["bias"] == pytest.approx(1 / 6)
    # with a winner: f s | s f | f f | – | f | s s | f f
    assert place["first_share"] == pytest.approx(7 / 11)
    assert place["p_first"] == pytest.approx((0.9 + 0.1 + 0.2 + 0.8 + 1.0 + 0.4 + 0.5 + 0.5) / 8)
    longer = found["length"]["longer_preferred"]
    assert (longer["share"], longer["pairs"]) == (3 / 4, 4)
    assert longer["ci95"] == list(ratio([(1, 1), (1, 1), (0, 1), (1, 1)]))
    assert longer["p"] == pytest.approx(2 * (1 + 4) / 16)  # exact sign test of 3 against 1
    assert (found["length"]["longer_is_right"]["share"], found["length"]["longer_is_right"]["pairs"]) == (1.0, 4)
    assert (found["gold"]["share"], found["gold"]["pairs"]) == ((1 + 1 + 0 + 0.5) / 4, 4)
    assert found["self"] == {"measured": False, "why": "every response is by another model: no pair has one of each"}


def test_the_hand_of_the_judge_itself() -> None:
    mine = [
        pair(0.9, "fs", (1, 1), own=(True, False), grades=(1, 1)),
        pair(0.8, "fs", (1, 1), own=(False, True), grades=(1, 1)),
        pair(0.3, "sf", (1, 2), own=(False, True), grades=(0, 1)),
        pair(0.5, "tt", (1, 3), own=(False, True), grades=(0, 0)),
    ]
    found = judge_bias(mine)["self"]
    assert (found["own_preferred"]["share"], found["own_preferred"]["pairs"]) == (2 / 3, 3)
    assert (found["equal_grades"]["share"], found["equal_grades"]["pairs"]) == (1 / 2, 2)
    own = judge_bias([pair(0.9, "fs", (1, 1), own=(True, True))])["self"]
    assert own["why"] == "every response is the labeller's own: no pair has one of each"


def test_pairs_of_one_question_are_one_cluster() -> None:
    alone = judge_bias([pair(0.9, "fs", (k, 0), question=f"{k}") for k in range(1, 9)])["length"]["longer_preferred"]
    together = judge_bias([pair(0.9, "fs", (k, 0), question=f"{k % 2}") for k in range(1, 9)])["length"]["longer_preferred"]
    assert together["ci95"][0] < alone["ci95"][0]


def test_no_pairs_are_no_shares() -> None:
    found = judge_bias([])
    assert found["gold"]["share"] is None
    assert found["position"]["first_share"] is None


def test_principles_are_names_files_or_sentences(tmp_path: Path) -> None:
    file = tmp_path / "constitution.txt"
    file.write_text("Be kind.\n\nBe brief.\n")
    assert read_principles(("honest", str(file), "Say please now."), "x") == [
        PRINCIPLES["honest"], "Be kind.", "Be brief.", "Say please now."
    ]  # fmt: skip
    assert AiFeedback(principles=("honest", str(file))).files == (str(file),)
    with pytest.raises(ConfigError, match=r"principle 'helpfull' is no built-in one.*did you mean 'helpful'"):
        build_maker("ai_feedback:principles=helpfull")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="is empty: write one principle a line"):
        read_principles(str(tmp_path / "empty"), "x")
    many = build_maker("ai_feedback:principles=[helpful,honest],one_each=true")
    engine = Labeller(lambda first, second: 0.6 if first < second else 0.4)
    items = [sampled(["a", "b"], f"q{k}") for k in range(12)]
    found = asked(many, items, engine)  # type: ignore[arg-type]
    drawn = [item.asked.said["pairs"][0]["principle"] for item in found if item.asked is not None]
    assert set(drawn) == {0, 1}
    texts = [prompt.messages[-1].content for prompt in engine.scored]
    assert all((PRINCIPLES["helpful"] in text) != (PRINCIPLES["honest"] in text) for text in texts)


@pytest.mark.parametrize("name", ["ai_feedback", "verdict_examples"])
def test_a_template_shows_everything(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: template must have the place {{criteria}}"):
        build_maker(f'{name}:template="{{question}} {{first}} {{second}}"')


def test_nobody_was_asked() -> None:
    for maker in (AiFeedback(), CritiqueRevise()):
        with pytest.raises(ConfigError, match="nobody was asked"):
            maker(TASK, prompter, [sampled(["a", "b"])], seed=0)


def test_verdict_examples_show_both_orders_in_the_words_of_the_judge() -> None:
    result = VerdictExamples(per_question=1)(TASK, prompter, [sampled(["w x", "w X"]), sampled(["a", "b"], "r")], seed=0)
    assert result.counts == {"questions": 2, "without_a_pair": 1, "pairs": 1, "rows": 2}
    assert [row["completion"] for row in result.rows] == ["Verdict: 1", "Verdict: 2"]
    engine = Labeller(lambda first, second: 0.6)
    asked(AiFeedback(principles="correct"), [sampled(["w x", "w X"])], engine)
    prompts = {prompt.messages[-1].content for prompt in engine.scored}
    assert prompts == {row["prompt"][0]["content"] for row in result.rows}
    orders = [shown(Prompt(messages=(Message(**row["prompt"][0]),))) for row in result.rows]
    assert orders == [("w X", "w x"), ("w x", "w X")]
    with pytest.raises(DataError, match="none of 1 questions has a right and a wrong response"):
        VerdictExamples()(TASK, prompter, [sampled(["a", "b"])], seed=0)


class Editor(ScriptedEngine):
    """Criticises anything; rewrites "k words" into "k+1 words", right from two on."""

    def __init__(self, **more: Any) -> None:
        self.asked: list[str] = []
        super().__init__(self.answer, **more)

    def answer(self, asked: str, sample: int, seed: int) -> str:
        self.asked.append(asked)
        response = asked.split("[Response]\n")[1].split("\n\n[")[0]
        if "[Principle]" in asked:
            return f"{response} is too short"
        return {"draft a": "one a", "one a": "two B", "two B": "three words that are too many C"}.get(response, response)


def test_rounds_of_critique_and_revision() -> None:
    engine = Editor()
    result = made(CritiqueRevise(rounds=2), [sampled(["draft a"])], engine)
    assert [row["completion"] for row in result.rows] == ["two B"]
    assert [text.split("[")[2].split("\n")[1] for text in engine.asked] == ["draft a", "draft a", "one a", "one a"]
    assert "draft a is too short" in engine.asked[1]
    assert (result.facts["right_before"]["share"], result.facts["right_after"]["share"]) == (0.0, 1.0)
    (row,) = made(CritiqueRevise(rounds=2, make="pairs"), [sampled(["draft a"])], Editor()).rows
    assert (row["chosen"], row["rejected"]) == ("two B", "draft a")


def test_a_cut_revision_ends_the_chain_with_what_was_whole_before() -> None:
    result = made(CritiqueRevise(rounds=3, max_tokens=5), [sampled(["draft a"])], Editor())
    assert [row["completion"] for row in result.rows] == ["two B"]
    assert (result.counts["cut"], result.counts["not_revised"]) == (1, 0)
    with pytest.raises(DataError, match="1 have no whole revision"):
        made(CritiqueRevise(max_tokens=1), [sampled(["draft a"])], Editor())


def test_what_was_left_as_it_is_makes_a_demonstration_but_no_pair() -> None:
    items = [sampled(["fine Z"])]
    result = made(CritiqueRevise(), items, Editor())
    assert [row["completion"] for row in result.rows] == ["fine Z"]
    assert result.counts["unchanged"] == 1
    with pytest.raises(DataError, match="1 were left as they are"):
        made(CritiqueRevise(make="pairs"), items, Editor())


def test_a_judge_of_two_takes_probabilities_or_draws_verdicts() -> None:
    with pytest.raises(ConfigError, match="read=logprobs needs no sampled verdicts: leave samples out"):
        build_judge("pairwise:samples=3,read=logprobs", task=TASK, engine=Labeller(lambda first, second: 0.5))
    judge = build_judge(
        "pairwise:reason=true,read=logprobs", task=TASK, engine=Labeller(lambda a, b: 0.8 if a == "good" else 0.4)
    )
    verdict = asyncio.run(_compare(judge))
    assert (verdict.winner, verdict.said, verdict.p_first) == ("a", ("first", "second"), pytest.approx((0.8, 0.4)))
    assert verdict.probability_a == pytest.approx((0.8 + 0.6) / 2)


async def _compare(judge: Any) -> Any:
    return await judge(Example(id="q", question="q?"), "good", "bad")
