"""Self-refine, verified search, budget forcing: what is asked, when they stop, what they keep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from simulated import PROMPT, Given, Noisy, answer, as_verifiers, policy, purse, tools

from posttrain.core.errors import BudgetSpentError, ConfigError, DataError
from posttrain.core.types import Completion, Prompt, Sampling
from posttrain.engines.scripted import ScriptedEngine
from posttrain.stats.gain import flips, gain_by_agreement
from posttrain.test_time.self_refine import verdict

# --- self-refine --------------------------------------------------------------------------------------------------------


class Writer(ScriptedEngine):
    """Answers, criticises and revises from lists; keeps the prompts."""

    def __init__(self, attempts: list[str], critiques: list[str]) -> None:
        super().__init__({}, respond=self.say)
        self.attempts, self.critiques = list(attempts), list(critiques)
        self.prompts: list[Prompt] = []

    def say(self, prompt: Prompt, sample: int, seed: int) -> str:
        self.prompts.append(prompt)
        return (self.critiques if "Check this answer" in prompt.messages[-1].content else self.attempts).pop(0)


def test_it_revises_until_the_critic_accepts() -> None:
    engine = Writer(["Answer: 1", "Answer: 2", "Answer: 3"], ["No.\nVerdict: incorrect", "Fine.\n**Verdict: Correct.**"])
    found = answer("self_refine", tools(engine))
    assert [c.answer for c in found.candidates] == ["1", "2"]
    assert found.answer == "2"
    trace = found.trace
    assert (trace["accepted"], trace["verdicts"], trace["revisions"], trace["drifted"]) == (True, [False, True], 1, True)
    assert trace["changed"] == [False, True]


def test_the_context_does_not_grow() -> None:
    engine = Writer([f"Answer: {i}" for i in range(6)], [f"Bad {i}.\nVerdict: incorrect" for i in range(5)])
    found = answer("self_refine:rounds=5", tools(engine))
    assert len(found.candidates) == 6
    assert {len(prompt.messages) for prompt in engine.prompts[1:]} == {3}
    last = engine.prompts[-1]
    assert [m.content for m in last.messages[:2]] == ["Q", "Answer: 4"]
    assert "Bad 4." in last.messages[2].content
    assert "Bad 3." not in last.messages[2].content
    assert found.answer == "5"  # nothing was accepted: the last one that can be read
    assert not found.trace["accepted"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verdict: correct", True),
        ("It is correct", None),
        ("I cannot say verdict: correct or not", None),
        ("Verdict: correct\nNo, wait.\nVerdict: incorrect", False),
        ("verdict: INCORRECT.", False),
        ("Verdict: correct or incorrect", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text: str, expected: bool | None) -> None:
    assert verdict(text) is expected


def test_an_unreadable_verdict_and_a_cut_reply_are_no_acceptance() -> None:
    unread = answer("self_refine:rounds=1", tools(Writer(["Answer: 1", "Answer: 2"], ["It is correct"])))
    assert (unread.trace["verdicts"], unread.trace["accepted"], unread.answer) == ([None], False, "2")
    long = Writer(["Answer: 1 " + "and so on " * 30, "Answer: 2"], ["Verdict: correct", "Verdict: correct"])
    cut = answer("self_refine", tools(long, sampling=Sampling(max_tokens=20)))
    assert [c.completion.finish for c in cut.candidates] == ["length", "stop"]
    assert cut.answer == "2"


def test_a_verifier_accepts_and_the_best_is_kept() -> None:
    def refine(scores: list[float], attempts: list[str], **more: Any) -> Any:
        engine = Writer(attempts, ["Hm."] * 9)
        return answer(
            "self_refine:verifier=given,threshold=0.9", tools(engine, verifiers=as_verifiers(given=Given(scores, **more)))
        )

    accepted = refine([0.2, 0.95], ["Answer: 1", "Answer: 2", "Answer: 3"])
    assert (accepted.answer, accepted.trace["accepted"], accepted.trace["scores"]) == ("2", True, [0.2, 0.95])
    at_once = refine([1.0], ["Answer: 1"])
    assert (at_once.trace["revisions"], at_once.trace["verdicts"]) == (0, [])  # no critique is paid for
    never = refine([0.2, 0.7, 0.4, 0.1], ["Answer: 1", "Answer: 2", "Answer: 3", "Answer: 4"])
    assert (never.answer, never.trace["chosen"], never.trace["accepted"]) == ("2", 1, False)
    unread = refine([0.2, 0.8, 0.4, 0.1], ["Answer: 1", "hm", "Answer: 3", "Answer: 4"])
    assert unread.answer == "3"
    assert refine([1.0], ["Answer: 1"], oracle=True).trace["oracle"] is True


def test_the_opened_answer_is_shown_to_the_critic() -> None:
    engine = Writer([" it is 4, 4.", "Answer: 4"], ["Verdict: incorrect"])
    prompt = Prompt(messages=PROMPT.messages, prefix="Let's think:")
    answer("self_refine:rounds=1", tools(engine), prompt=prompt)
    assert engine.prompts[1].messages[1].content == "Let's think: it is 4, 4."
    assert engine.prompts[1].prefix is None
    assert engine.prompts[2].prefix == "Let's think:"  # a revision is opened as the first answer was


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_self_refine_under_a_budget(budget: int) -> None:
    replies = ["Answer: 1", "Verdict: incorrect", "Answer: 2", "Verdict: incorrect"]
    given, spent = purse(["x"], budget)
    spent.engine = ScriptedEngine({}, respond=lambda prompt, sample, seed: replies.pop(0))
    found = answer("self_refine", given)
    assert found.answer == ("2" if budget == 3 else "1")
    empty, _ = purse(["x"], 0)
    with pytest.raises(BudgetSpentError):
        answer("self_refine", empty)


@dataclass
class Line:
    """A row, as far as the statistics read it."""

    score: float
    grades: list[float]
    trace: dict[str, Any] = field(default_factory=dict)
    example: str = "e"

    @property
    def candidates(self) -> list[dict[str, Any]]:
        return [{"answer": "x", "score": grade, "finish": "stop"} for grade in self.grades]


def test_flips_by_hand() -> None:
    rows = [
        Line(1.0, [0.0, 1.0], {"drifted": True}),  # mended
        Line(0.0, [1.0, 0.0], {"drifted": True}),  # broken
        Line(1.0, [1.0, 0.0, 1.0], {"drifted": False}),  # there and back
        Line(0.0, [0.0], {"drifted": False}),
        Line(0.0, [0.0, 0.0], {"drifted": True}),
    ]
    found = flips(rows)
    assert (found.first, found.final) == (0.4, 0.4)
    assert (found.wrong_to_right, found.right_to_wrong, found.drifted) == (0.2, 0.2, 0.6)
    assert found.final - found.first == pytest.approx(found.wrong_to_right - found.right_to_wrong)
    assert found.rounds == (0.4, 0.2, 0.4)
    assert (found.step_wrong_to_right, found.step_right_to_wrong) == (2, 2)
    with pytest.raises(DataError, match="no rows"):
        flips([])


def test_the_gain_of_a_vote_by_agreement() -> None:
    rows = [Line(1.0, [1, 1, 1, 1], {"votes": {"a": 4}})] * 4
    rows += [Line(1.0, [1, 1, 0, 0], {"votes": {"a": 2, "b": 1, "c": 1}})] * 4
    rows += [Line(0.0, [1, 0, 0, 0], {"votes": {"a": 1, "b": 1}})] * 4
    bins = gain_by_agreement(rows, bins=3)
    assert [(b.agreement, b.n, b.single, b.vote) for b in bins] == [
        ((0.25, 0.25), 4, 0.25, 0.0),
        ((0.5, 0.5), 4, 0.5, 1.0),
        ((1.0, 1.0), 4, 1.0, 1.0),
    ]
    assert [b.gain for b in bins] == [-0.25, 0.5, 0.0]
    assert sum(b.n for b in gain_by_agreement(rows, bins=5)) == 12
    assert len(gain_by_agreement(rows[:4], bins=4)) == 1  # equal agreement is not torn apart
    with pytest.raises(DataError, match="no votes in its trace"):
        gain_by_agreement([Line(1.0, [1.0])])


# --- verified search ----------------------------------------------------------------------------------------------------


def test_it_searches_until_the_verifier_says_yes() -> None:
    replies = ["Answer: 1", "Answer: 2", "Answer: 3", "Answer: 4"]
    spec = "verified_search:n=4,verifier=given,threshold=0.5,feedback=false"
    found = answer(spec, tools(replies, verifiers=as_verifiers(given=Given([0.1, 0.2, 0.8, 0.9]))))
    assert (found.answer, found.trace["tries"], found.trace["accepted"]) == ("3", 3, True)
    assert found.scores == (0.1, 0.2, 0.8)
    wave = answer(spec + ",wave=4", tools(replies, verifiers=as_verifiers(given=Given([0.1, 0.2, 0.8, 0.9]))))
    assert (wave.answer, wave.trace["tries"], wave.trace["overshoot"]) == ("3", 4, 1)  # the first accepted
    never = answer(spec, tools(replies, verifiers=as_verifiers(given=Given([0.1, 0.4, 0.2, 0.3]))))
    assert (never.answer, never.trace["accepted"], never.trace["tries"]) == ("2", False, 4)


def test_rejected_answers_are_fed_back_once_each() -> None:
    prompts: list[Prompt] = []
    replies = ["Answer: 7", "hm", "Answer: 7.0", "Answer: 8", "Answer: 9"]

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        prompts.append(prompt)
        return replies[sample]

    engine = ScriptedEngine({}, respond=respond)
    found = answer(
        "verified_search:n=5,verifier=given", tools(engine, verifiers=as_verifiers(given=Given([0, 0, 0, 0, 1.0])))
    )
    asked = [prompt.messages[-1].content for prompt in prompts]
    assert asked[0] == "Q"
    assert asked[1] == asked[2] == asked[3] == "Q\n\n" + asked[1].split("\n\n")[1]
    assert "wrong: 7." in asked[3]
    assert "wrong: 7, 8." in asked[4]
    assert {len(prompt.messages) for prompt in prompts} == {1}
    assert found.answer == "9"


def test_neither_a_cut_nor_an_unreadable_reply_is_accepted() -> None:
    replies = ["Answer: 1 " + "la " * 40, "hm", "Answer: 3"]
    given = tools(replies, verifiers=as_verifiers(given=Given([1.0, 1.0, 1.0])), sampling=Sampling(max_tokens=20))
    found = answer("verified_search:n=3,verifier=given,feedback=false", given)
    assert (found.answer, found.trace["tries"]) == ("3", 3)


def test_an_accepted_answer_is_right_as_often_as_the_verifier_allows() -> None:
    p, hit, slip, n, trials = 0.5, 0.8, 0.2, 6, 400
    right = tries = 0.0
    for seed in range(trials):
        given = tools(policy({"1": p, "2": 0.3, "3": 0.2}), verifiers=as_verifiers(noisy=Noisy("1", hit, slip, seed=seed)))
        found = answer(f"verified_search:n={n},verifier=noisy,feedback=false", given, seed=seed)
        right += found.answer == "1"
        tries += found.trace["tries"]
    q = p * hit + (1 - p) * slip
    none = (1 - q) ** n
    expected = (1 - none) * p * hit / q + none * p * (1 - hit) / (1 - q)
    assert abs(right / trials - expected) < 3 * (expected * (1 - expected) / trials) ** 0.5
    mean_tries = (1 - none) / q  # a geometric law cut at n
    assert abs(tries / trials - mean_tries) < 3 * ((1 - q) / q**2 / trials) ** 0.5


def test_verified_search_under_a_budget() -> None:
    given, spent = purse(lambda question, sample, seed: f"Answer: {sample}", 3)
    given = replace(given, verifiers=as_verifiers(given=Given([0.1, 0.7, 0.3])))
    found = answer("verified_search:n=8,verifier=given", given)
    assert (found.answer, found.trace["tries"], spent.used) == ("1", 3, 3)


# --- budget forcing -----------------------------------------------------------------------------------------------------


class Thinker(ScriptedEngine):
    """Replies from a list; keeps what it was asked to continue, and how."""

    def __init__(self, replies: list[str]) -> None:
        super().__init__({}, respond=self.say)
        self.replies = list(replies)
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []

    def say(self, prompt: Prompt, sample: int, seed: int) -> str:
        self.prompts.append(prompt)
        return self.replies.pop(0)

    async def generate(self, prompt: Prompt, sampling: Sampling, **more: Any) -> list[Completion]:
        self.samplings.append(sampling)
        return await super().generate(prompt, sampling, **more)


def test_an_early_end_of_thinking_is_replaced_by_wait() -> None:
    engine = Thinker(["two and two is 5</think> Answer: 5", " no, it is 4</think>", "Answer: 4"])
    found = answer("budget_forcing", tools(engine))
    assert found.text == "two and two is 5Wait no, it is 4</think>Answer: 4"
    assert found.answer == "4"
    assert (found.trace["waits"], found.trace["ended"]) == (1, "mark")
    pieces = engine.prompts[2].pieces  # by token ids: completions stay completions
    assert [type(piece) for piece in pieces] == [Completion, str, Completion, str]
    assert [piece for piece in pieces if isinstance(piece, str)] == ["Wait", "</think>"]
    assert engine.samplings[0].stop == ("</think>",)
    assert engine.samplings[1].max_tokens == 1024 - 5


def test_thinking_is_cut_at_the_limit_and_the_answer_asked_for() -> None:
    engine = Thinker(["one two three four five six", "12"])
    found = answer("budget_forcing:max_tokens=4,answer_tokens=5", tools(engine))
    assert found.text == "one two three four</think>\nFinal Answer:12"
    assert (found.answer, found.trace["ended"], found.trace["thinking_tokens"]) == ("12", "limit", 4)
    assert [s.max_tokens for s in engine.samplings] == [4, 5]
    no_mark = Thinker(["one two three four five six", "12"])
    assert answer("budget_forcing:max_tokens=4,end=null", tools(no_mark)).text == "one two three four\nFinal Answer:12"


def test_min_tokens_says_when_an_end_may_stand() -> None:
    engine = Thinker(["a b c </think>", " d e f </think>", "Answer: 1"])
    found = answer("budget_forcing:min_tokens=6,waits=9", tools(engine))
    assert (found.trace["waits"], found.trace["thinking_tokens"]) == (1, 8)
    enough = Thinker(["a b c d e f </think>", "Answer: 1"])
    assert answer("budget_forcing:min_tokens=6,waits=9", tools(enough)).trace["waits"] == 0
    stubborn = Thinker(["</think>"] * 4 + ["Answer: 1"])
    assert answer("budget_forcing:min_tokens=99,waits=3", tools(stubborn)).trace["waits"] == 3  # it ends


def test_a_turn_that_ends_of_itself_with_an_answer_is_the_reply() -> None:
    engine = Thinker(["Answer: 6"])
    found = answer("budget_forcing:waits=0,end=null", tools(engine))
    assert (found.text, found.trace["asked"], found.trace["ended"]) == ("Answer: 6", False, "turn")
    asked = Thinker(["I do not know", " 6"])
    assert answer("budget_forcing:waits=0,end=null", tools(asked)).text == "I do not know\nFinal Answer: 6"


def test_the_prompt_s_own_opening_and_cue_are_kept() -> None:
    engine = Thinker([" it is three", " 3."])
    prompt = Prompt(messages=PROMPT.messages, prefix="Let's think.", cue="Therefore, the answer is")
    found = answer("budget_forcing:waits=0,end=null", tools(engine), prompt=prompt)
    assert engine.prompts[1].begun == "Let's think. it is three\nTherefore, the answer is"
    assert (found.answer, found.text) == ("3", " it is three\nTherefore, the answer is 3.")


def test_budget_forcing_under_a_budget_and_its_settings() -> None:
    for budget, text in ((1, "x 5"), (2, "x 5Wait y 6")):
        replies = ["x 5</think>", " y 6</think>", "Answer: 6"]
        given, spent = purse(["x"], budget)
        spent.engine = ScriptedEngine({}, respond=lambda prompt, sample, seed, replies=replies: replies.pop(0))
        assert answer("budget_forcing", given).text == text
    with pytest.raises(ConfigError, match="min_tokens=9 is above max_tokens=5"):
        answer("budget_forcing:min_tokens=9,max_tokens=5", tools(["x"]))


def test_wider_n_never_changes_a_sample() -> None:
    given = tools(policy({"1": 0.4, "2": 0.6}), verifiers=as_verifiers(given=Given([0.0] * 99)))
    texts = []
    for n in (3, 6):
        runs = [f"adaptive_consistency:n={n},threshold=0.999", f"verified_search:n={n},verifier=given,feedback=false"]
        texts.append([[c.text for c in answer(spec, given, seed=5).candidates] for spec in runs])
    assert [pool[:3] for pool in texts[1]] == texts[0]
