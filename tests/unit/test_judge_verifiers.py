"""P(True), judges of one reply and of two, tournaments: on scripted engines whose answers are known."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch

from posttrain.core.errors import CapabilityError, ConfigError
from posttrain.core.protocols import Tools
from posttrain.core.seeds import rng
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling, Score, Usage, Verdict
from posttrain.engines.local import LocalEngine
from posttrain.engines.meter import Account, Metered
from posttrain.engines.scripted import ScriptedEngine
from posttrain.stats.judging import bias_of, position_bias
from posttrain.test_time.best_of_n import BestOfN
from posttrain.verifiers import build_judge, build_verifier
from posttrain.verifiers._labels import label_probabilities
from posttrain.verifiers.pairwise import decided
from posttrain.verifiers.tournament import schedule

TASK: Any = SimpleNamespace(
    name="t", instruction="", max_tokens=16, extract=lambda text: m[1] if (m := re.search(r"Answer: (\w+)", text)) else None
)
ASKED = Example(id="1", question="What is {x} in \\frac{1}{2}?")


def run(awaitable: Any) -> Any:
    async def go() -> Any:
        return await awaitable

    return asyncio.run(go())


def values(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores]


class LabelEngine(ScriptedEngine):
    """Gives next words by a table: (last user text, opening) -> probability of each label, spelled letter by letter."""

    def __init__(self, probability: Callable[[Prompt, str], float], **more: Any) -> None:
        super().__init__({}, **more)
        self.probability = probability
        self.asked: list[tuple[Prompt, str]] = []

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        assert isinstance(continuation, str)
        self.asked.append((prompt, continuation))
        p = self.probability(prompt, continuation)
        tokens = tuple(map(ord, continuation))
        logprobs = (*([0.0] * (len(tokens) - 1)), math.log(p))
        return Completion(text=continuation, tokens=tokens, raw_logprobs=logprobs, usage=Usage(calls=1, scored=len(tokens)))


def writes(reply: Callable[[str], str], **more: Any) -> ScriptedEngine:
    return ScriptedEngine(lambda asked, sample, seed: reply(asked), **more)


# ------------------------------------------------------------------------------------------------------------ P(True)


def test_p_true_is_the_normalised_probability_of_the_label() -> None:
    table = {("four", " (A"): 0.3, ("four", " (B"): 0.1, ("five", " (A"): 0.2, ("five", " (B"): 0.6}
    engine = LabelEngine(
        lambda prompt, label: table[re.search(r"Proposed Answer: (\w+)", prompt.messages[-1].content)[1], label]
    )
    verifier: Any = build_verifier("p_true", task=TASK, engine=engine)
    assert not verifier.oracle
    assert values(run(verifier(ASKED, ["four", "five", "four"]))) == pytest.approx([0.75, 0.25, 0.75])
    assert len(engine.asked) == 4  # equal texts once, two labels each
    assert verifier.tally == Counter(texts=3, off_label=2)  # 0.3 + 0.1 < 0.5, twice
    prompt = engine.asked[0][0]
    assert prompt.prefix == "The proposed answer is:"
    assert prompt.messages[0].content == (
        "Question: What is {x} in \\frac{1}{2}?\nProposed Answer: four\nIs the proposed answer:\n (A) True\n (B) False"
    )


def test_p_true_of_the_answer_alone_and_with_ideas_of_its_own() -> None:
    account = Account()

    class Both(LabelEngine):
        drawn = 0

        async def generate(self, prompt: Prompt, sampling: Sampling, **more: Any) -> list[Completion]:
            assert (sampling.temperature, sampling.max_tokens) == (1.0, 16)
            assert prompt.messages[0].content == ASKED.question
            self.drawn += 1
            return await ScriptedEngine(lambda asked, sample, seed: f"so\nAnswer: idea{sample}").generate(
                prompt, sampling, **more
            )

    engine = Both(lambda prompt, label: 0.5 if label == " yes" else 0.25)
    verifier: Any = build_verifier(
        {
            "name": "p_true",
            "show": "answer",
            "ideas": 3,
            "yes": " yes",
            "no": " no",
            "prompt": "{question}\\n{ideas}> {answer}",
        },
        task=TASK,
        engine=engine,
        meter=lambda inner, role: Metered(inner, account, role),
    )
    scores = values(run(verifier(ASKED, ["Well.\nAnswer: four", "no answer"])))
    assert scores[0] == pytest.approx(2 / 3)
    assert math.isnan(scores[1])
    assert verifier.tally["unparsed"] == 1
    assert engine.drawn == 1
    assert engine.asked[0][0].messages[0].content == (
        f"{ASKED.question}\nHere are some brainstormed ideas:\nidea0\nidea1\nidea2\n> four"
    )
    assert set(account.by_role()) == {"verifier"}
    assert account.by_role()["verifier"].usage.generated == 3 * 4  # three words and the end, thrice


def test_p_true_on_a_real_engine_equals_the_softmax_over_two_tokens() -> None:
    """Against transformers' own next-token distribution, where both labels are one token."""
    model = tiny_models.model()
    tokenizer = tiny_models.tokenizer()
    engine = LocalEngine(model, tokenizer, fingerprint="tiny", slots=4)
    spec = {"name": "p_true", "yes": "T", "no": "F", "prompt": "{question} {answer}?", "opening": "It is "}
    (score,) = run(build_verifier(spec, task=TASK, engine=engine)(Example(id="1", question="q"), ["a"]))
    user = Message(role="user", content="q a?").to_dict()
    text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) + "It is "
    with torch.no_grad():
        z = model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
    labels = [tokenizer("T").input_ids[0], tokenizer("F").input_ids[0]]
    assert score.value == pytest.approx(float(torch.softmax(z[labels], -1)[0]), abs=1e-5)


def test_labels_that_begin_one_another_share_no_probability() -> None:
    """P("1") as next words includes "10" and "100"; each gets only its own."""
    given = {" 1": 0.5, " 10": 0.3, " 100": 0.1, " 2": 0.2}
    engine = LabelEngine(lambda prompt, label: given[label])
    prompt = Prompt(messages=(Message(role="user", content="x"),))
    found, together = run(label_probabilities(engine, prompt, list(given)))
    assert found == pytest.approx([0.2 / 0.7, 0.2 / 0.7, 0.1 / 0.7, 0.2 / 0.7])
    assert together == pytest.approx(0.7)
    tiny = LabelEngine(lambda prompt, label: 1e-300 * given[label])
    assert run(label_probabilities(tiny, prompt, list(given)))[0] == pytest.approx(found)


# ------------------------------------------------------------------------------------------------------------ pointwise


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 7", 7),
        ("It is fine.\n**Rating:** 10", 10),
        ("Rating: 3\nOn second thought:\nRating: [[8]]", 8),
        ("rating: 6/10.", 6),
        ("Rating: 7.5", 7.5),
        ("Rating: 0", None),
        ("Rating: 11", None),
        ("Rating: 7/5", None),
        ("Rating: -3", None),
        ("Rating: seven", None),
        ("Rating: 7\nRating: or perhaps 8", None),  # the last one counts, and it cannot be read
        ("I would say 7", None),
        ("My rating: 7", None),
        ("", None),
    ],
)
def test_a_rating_is_read_strictly_from_the_last_line(reply: str, rating: float | None) -> None:
    verifier: Any = build_verifier("judge", task=TASK, engine=writes(lambda asked: reply))
    (score,) = run(verifier(ASKED, ["x"]))
    if rating is None:
        assert math.isnan(score.value)
        assert verifier.tally == Counter(texts=1, unparsed=1)
    else:
        assert score.value == pytest.approx((rating - 1) / 9)
        assert verifier.tally == Counter(texts=1, rated=1)


def test_a_judge_is_shown_question_reply_and_criteria_and_charged_as_a_judge() -> None:
    seen: list[str] = []
    account = Account()
    engine = writes(lambda asked: seen.append(asked) or "Let me see.\nRating: 2")
    verifier: Any = build_verifier(
        {"name": "judge", "criteria": "No {braces}.", "top": 5, "reason": True},
        task=TASK,
        engine=engine,
        meter=lambda inner, role: Metered(inner, account, role),
    )
    assert values(run(verifier(ASKED, ["a {question}", "a {question}", "b"]))) == pytest.approx([0.25] * 3)
    assert len(seen) == 2
    assert "[Question]\nWhat is {x} in \\frac{1}{2}?\n" in seen[0]
    assert "[Response]\na {question}\n" in seen[0]
    assert "[Criteria]\nNo {braces}.\n" in seen[0]
    assert "from 1 (worst) to 5 (best). Think it over" in seen[0]
    assert account.by_role()["judge"].usage.calls == 2


def test_reasoning_that_was_cut_gives_no_rating() -> None:
    engine = writes(lambda asked: "Rating: 2\n" + "and so on " * 50)
    verifier: Any = build_verifier("judge:reason=true,max_tokens=10", task=TASK, engine=engine)
    assert math.isnan(run(verifier(ASKED, ["x"]))[0].value)


def test_the_expected_rating() -> None:
    """p(r) ∝ r for 1..10, with the mass of 10 counted in that of 1: E[r] = Σ r² / Σ r = 385 / 55 = 7."""

    def probability(prompt: Prompt, label: str) -> float:
        assert prompt.prefix == "Rating:"
        return (11 if label == " 1" else int(label)) / 60

    verifier: Any = build_verifier("judge:read=logprobs", task=TASK, engine=LabelEngine(probability))
    assert values(run(verifier(ASKED, ["x"]))) == pytest.approx([(7 - 1) / 9])
    assert verifier.tally == Counter(texts=1, rated=1)
    rare: Any = build_verifier("judge:read=logprobs,top=3", task=TASK, engine=LabelEngine(lambda prompt, label: 0.1))
    assert values(run(rare(ASKED, ["x"]))) == pytest.approx([0.5])
    assert rare.tally == Counter(texts=1, off_label=1)


def test_an_unreadable_judge_leaves_best_of_n_unscored_and_counted() -> None:
    judge = build_verifier(
        "judge", task=TASK, engine=writes(lambda asked: "Rating: 9" if "Answer: b" in asked else "It depends.")
    )
    policy = ScriptedEngine({"q": ["Answer: a", "Answer: b", "Answer: c"]})
    tools = Tools(engine=policy, extract=TASK.extract, key=str, verifiers={"judge": judge})
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    answer = run(BestOfN(n=3, verifier="judge")(prompt, ASKED, tools, seed=0))
    assert answer.answer == "b"
    assert answer.trace["unscored"] == 2


# ------------------------------------------------------------------------------------------------------------- pairwise


def shown_pair(asked: str) -> tuple[str, str]:
    found = re.search(r"\[Response 1\]\n(.*)\n\n\[Response 2\]\n(.*)\n\n\[Criteria\]", asked, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def by_strength(asked: str) -> str:
    first, second = map(float, shown_pair(asked))
    return f"Verdict: {'tie' if first == second else 1 if first > second else 2}"


def compare(engine: Any, a: str, b: str, spec: str = "pairwise") -> Verdict:
    found: Verdict = run(build_judge(spec, task=TASK, engine=engine)(ASKED, a, b))
    return found


def test_both_orders_must_agree() -> None:
    honest = writes(by_strength)
    assert compare(honest, "2", "1") == Verdict(winner="a", said=("first", "second"))
    assert compare(honest, "1", "2") == Verdict(winner="b", said=("second", "first"))
    assert compare(honest, "1", "1.0") == Verdict(winner="tie", said=("tie", "tie"))
    assert honest.calls == 6
    assert compare(honest, "1", "1") == Verdict(winner="tie")
    assert honest.calls == 6  # equal texts are not asked
    first = writes(lambda asked: "Verdict: 1")
    assert compare(first, "2", "1") == Verdict(winner="tie", flipped=True, said=("first", "first"))
    assert compare(writes(lambda asked: "1"), "2", "1") == Verdict(winner="tie", said=("unparsed", "unparsed"))


@pytest.mark.parametrize(
    ("orders", "winner", "flipped"),
    [
        (("first", "second"), "a", False),
        (("second", "first"), "b", False),
        (("tie", "tie"), "tie", False),
        (("first", "first"), "tie", True),
        (("second", "second"), "tie", True),
        (("first", "tie"), "tie", True),
        (("tie", "first"), "tie", True),
        (("unparsed", "first"), "tie", False),
        (("second", "unparsed"), "tie", False),
    ],
)
def test_decided(orders: Any, winner: str, flipped: bool) -> None:
    assert decided(*orders) == Verdict(winner=winner, flipped=flipped, said=orders)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Verdict: 1", "first"),
        ("1 is longer, but wrong.\n\n**Verdict: [[2]]**", "second"),
        ("Verdict: 1\nNo, wait.\nVerdict: Tie.", "tie"),
        ("Verdict: 10", "unparsed"),
        ("Verdict: 12", "unparsed"),
        ("Verdict: 1 or 2", "unparsed"),
        ("Verdict: 2\nVerdict: hard to say", "unparsed"),
        ("The best choice is 2", "unparsed"),
    ],
)
def test_a_verdict_is_read_strictly(reply: str, said: str) -> None:
    assert compare(writes(lambda asked: reply), "a", "b").said[0] == said


def test_probabilities_cancel_a_constant_preference_for_a_place() -> None:
    """log-odds(first shown) = strength difference + bias: with one of 0.8 the mean over orders stays antisymmetric."""

    def probability(prompt: Prompt, label: str) -> float:
        assert prompt.prefix == "Verdict:"
        first, second = map(float, shown_pair(prompt.messages[-1].content))
        p = 1 / (1 + math.exp(-(first - second + 0.8)))
        return 0.9 * (p if label == " 1" else 1 - p)

    strong = compare(LabelEngine(probability), "2", "1", "pairwise:read=logprobs")
    weak = compare(LabelEngine(probability), "1", "2", "pairwise:read=logprobs")
    assert (strong.winner, weak.winner) == ("a", "b")
    sigma = [1 / (1 + math.exp(-(1 + bias))) for bias in (0.8, -0.8)]
    assert strong.probability_a == pytest.approx(sum(sigma) / 2)
    assert strong.probability_a == pytest.approx(1 - (weak.probability_a or 0))
    close = compare(LabelEngine(probability), "1.5", "1", "pairwise:read=logprobs")
    assert (close.winner, close.flipped) == ("tie", True)  # the bias is larger than the difference
    assert (close.probability_a or 0) > 0.5


def test_position_bias_counts() -> None:
    said: list[Any] = (
        [("first", "second")] * 5 + [("second", "first")] * 3 + [("first", "first")] * 6 + [("second", "second")]
    )
    said += [("tie", "tie"), ("first", "tie"), ("unparsed", "first"), ()]
    found = position_bias(said)
    assert (found.pairs, found.unparsed, found.flips, found.first, found.second) == (17, 1, 8, 6, 1)
    assert found.flip_rate == pytest.approx(8 / 17)
    assert found.flip_ci95[0] < 8 / 17 < found.flip_ci95[1]
    assert found.bias == pytest.approx(5 / 17)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)  # two-sided binomial: at most one of seven
    nothing = position_bias([])
    assert (nothing.flip_rate, nothing.bias, nothing.p) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="two orders"):
        position_bias([("first",)])


def test_flip_rate_of_a_judge_with_a_known_bias_is_the_closed_form() -> None:
    """A judge that says "the first" with probability q and the truth otherwise flips a pair with probability q.

    With the better text first it is right either way; with the worse one first it is wrong with probability q. So only
    the second order can spoil the agreement, and every flip favours the place shown first.
    """
    q, pairs = 0.3, 400

    def reply(asked: str) -> str:
        return "Verdict: 1" if rng(0, asked).random() < q else by_strength(asked)

    judge = build_judge("pairwise", task=TASK, engine=writes(reply))

    async def all_pairs() -> list[Verdict]:
        return await asyncio.gather(*(judge(ASKED, str(2 * i), str(2 * i + 1)) for i in range(pairs)))

    verdicts = asyncio.run(all_pairs())
    found = position_bias([verdict.said for verdict in verdicts])
    assert abs(found.flip_rate - q) < 3 * math.sqrt(q * (1 - q) / pairs)
    assert (found.first, found.second) == (found.flips, 0)
    assert found.p < 1e-6
    assert {verdict.winner for verdict in verdicts if not verdict.flipped} == {"b"}


# ----------------------------------------------------------------------------------------------------------- tournament


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
def test_the_schedule_meets_everyone_once(n: int) -> None:
    rounds = schedule(range(n))
    assert len(rounds) == n - 1 + n % 2
    assert all(len({i for pair in meets for i in pair}) == 2 * len(meets) == n - n % 2 for meets in rounds)
    assert sorted(tuple(sorted(pair)) for meets in rounds for pair in meets) == [
        (i, j) for i in range(n) for j in range(i + 1, n)
    ]


def tournament(spec: str, engine: Any, texts: Sequence[str]) -> tuple[list[float], Any]:
    verifier: Any = build_verifier(spec, task=TASK, engine=engine)
    return values(run(verifier(ASKED, texts))), verifier


def test_win_rates_against_all_others() -> None:
    engine = writes(by_strength)
    scores, verifier = tournament("tournament", engine, ["3", "1", "4", "1.0", "3"])
    assert scores == pytest.approx([2 / 3, 0.5 / 3, 1.0, 0.5 / 3, 2 / 3])  # four contestants: the two "3" are one
    assert engine.calls == 4 * 3
    assert (verifier.tally["pairs"], verifier.tally["flips"]) == (6, 0)
    assert sum(scores[:4]) == pytest.approx(4 / 2)  # a round-robin's win rates always sum to n/2
    assert tournament("tournament", engine, ["7", "7"])[0] == [0.5, 0.5]


def test_a_judge_that_sees_only_places_decides_nothing() -> None:
    engine = writes(lambda asked: "Verdict: 1")
    scores, verifier = tournament("tournament", engine, ["3", "1", "4"])
    assert scores == [0.5, 0.5, 0.5]
    assert verifier.tally == Counter(pairs=3, flips=3, first=3)
    assert bias_of(**{name: verifier.tally[name] for name in ("pairs", "unparsed", "flips", "first", "second")}).bias == 1.0


def test_sampled_rounds_cost_n_calls_each_and_meet_no_one_twice() -> None:
    seen: list[frozenset[str]] = []

    def reply(asked: str) -> str:
        seen.append(frozenset(shown_pair(asked)))
        return by_strength(asked)

    texts = [str(i) for i in range(8)]
    scores, _ = tournament("tournament:rounds=3", writes(reply), texts)
    assert len(seen) == 3 * 8
    assert set(Counter(seen).values()) == {2}  # both orders, and never again
    assert Counter(text for pair in set(seen) for text in pair) == Counter(dict.fromkeys(texts, 3))
    assert scores[7] == 1.0
    assert scores[0] == 0.0
    first = set(seen)
    seen.clear()
    tournament("tournament:rounds=3", writes(reply), texts)
    assert set(seen) == first
    seen.clear()
    tournament("tournament:rounds=3,seed=1", writes(reply), texts)
    assert set(seen) != first


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
def test_a_knockout_finds_the_best_in_n_minus_one_pairs(n: int) -> None:
    engine = writes(by_strength)
    texts = [str(i * 7 % n) for i in range(n)] if n % 7 else [str(i) for i in range(n)]
    scores, verifier = tournament("tournament:form=knockout", engine, texts)
    assert texts[max(range(n), key=lambda i: scores[i])] == str(n - 1)
    assert scores.count(1.0) == 1
    assert engine.calls == 2 * (n - 1)
    assert verifier.tally["pairs"] == n - 1


def test_best_of_n_by_a_tournament() -> None:
    judge = build_verifier("tournament", task=TASK, engine=writes(lambda asked: by_answer(asked)))
    policy = ScriptedEngine({"q": ["Answer: a", "Answer: c", "Answer: b"]})
    tools = Tools(engine=policy, extract=TASK.extract, key=str, verifiers={"tournament": judge})
    answer = run(
        BestOfN(n=3, verifier="tournament")(Prompt(messages=(Message(role="user", content="q"),)), ASKED, tools, seed=0)
    )
    assert answer.answer == "c"
    assert answer.scores == (0.0, 1.0, 0.5)


def by_answer(asked: str) -> str:
    first, second = shown_pair(asked)
    return f"Verdict: {1 if first > second else 2}"


# ---------------------------------------------------------------------------------------------------------- being built


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("judge:reason=true,read=logprobs", "read=logprobs takes the rating as the next words"),
        ("judge:prompt=hello", r"must have the place \{response\}"),
        ("judge:top=1", "top: Input should be greater than or equal to 2"),
        ("tournament:form=knockout,rounds=2", "as many rounds as it needs"),
        ("tournament:prompt=hello", r"must have the places \{first\} and \{second\}"),
        ("p_true:prompt=hello", r"must have the place \{answer\}"),
        ("p_true:yes=a,no=a", "two different labels"),
        ("p_true:ideas=2,prompt='{answer}'", r"must have the place \{ideas\}"),
        ("pairwise", "'pairwise' is a judge that compares two texts; as a verifier of n texts use 'tournament'"),
    ],
)
def test_mistakes(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_verifier(spec, task=TASK, engine=writes(str))


def test_more_mistakes() -> None:
    with pytest.raises(ConfigError, match="needs an engine, and none is given here; name one with its setting 'model'"):
        build_verifier("judge", task=TASK)
    with pytest.raises(ConfigError, match="unknown judge 'judge'; choose from: pairwise"):
        build_judge("judge", task=TASK)
    with pytest.raises(CapabilityError, match="needs an engine that can do: prefix, score"):
        build_verifier("judge:read=logprobs", task=TASK, engine=ScriptedEngine({}, can=frozenset()))
    engine = writes(lambda asked: "Rating: 1")
    with pytest.raises(ConfigError, match=r"unknown place \{respnse\}; did you mean 'response'"):
        run(build_verifier({"name": "judge", "prompt": "{response} {respnse}"}, task=TASK, engine=engine)(ASKED, ["x"]))


def test_a_model_of_its_own_is_opened_by_name_and_metered() -> None:
    opened: list[str] = []
    account = Account()

    def opener(ref: str) -> ScriptedEngine:
        opened.append(ref)
        return writes(lambda asked: "Rating: 10")

    policy = writes(lambda asked: "Rating: 1")
    verifier: Any = build_verifier(
        "judge:model=other", task=TASK, engine=policy, opener=opener, meter=lambda inner, role: Metered(inner, account, role)
    )
    assert values(run(verifier(ASKED, ["x"]))) == [1.0]
    assert (opened, policy.calls) == (["other"], 0)
    assert account.by_role()["judge"].usage.calls == 1


def test_a_folder_is_opened_once_in_this_process(tmp_path: Path) -> None:
    folder = tiny_models.folder(tmp_path / "judge", tiny_models.llama(max_position_embeddings=2048))
    specs = [f"judge:model={folder},read=logprobs", f"likelihood:model={folder}", f"p_true:model={folder}"]
    verifiers: list[Any] = [build_verifier(spec, task=TASK) for spec in specs]
    assert len({id(verifier.engine) for verifier in verifiers}) == 1
    for verifier in verifiers:
        (score,) = run(verifier(Example(id="1", question="q"), ["a"]))
        assert 0 < score.value < 1
